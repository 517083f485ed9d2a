"""What decides a build's result: frozen, strict, and written beside what it made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from faceshards.errors import ConfigError
from faceshards.formats.encoded_image import MAX_PIXELS
from faceshards.settings import check_settings, one_of, within


@dataclass(frozen=True)
class BuildConfig:
    """Every setting that changes the published bytes; workers and partition size do not, so they are not here.

    Args:
        image_size: required [height, width] in pixels; [0, 0] takes any size.
        max_pixels: larger images are refused before decoding (decompression bombs).
        near_within: Hamming bits of 256; images of one identity this close are one photograph. 24 is strict, 40
            thorough (calibrated on LFW, docs/deduplication.md). -1 turns it off.
        near_across: likewise between identities, where 24 is a safe default; -1 leaves only exact copies.
        near_mirror: likewise for mirrored copies, within identities and between them; -1, the default, looks for none.
        recall: least share of the across-identity pairs at exactly near_across bits (mirrored ones: near_mirror) that
            the banding must find.
        conflict_policy: for one photograph under several identities: ``drop`` all copies, ``keep-larger`` keeps it in
            the identity with more images, ``keep`` only reports.
        min_images: identities that end with fewer images are dropped.
        max_images: images above this many are dropped from an identity, chosen by seed; 0 means no limit.
        shards: number of shard files; 0 derives it from shard_bytes, rounded up to a multiple of 8; sets below 128 MiB
            have 4, 2 or 1, of 16 MiB or more, unless shard_bytes asks for smaller ones.
        shard_bytes: aimed size of a shard file in bytes, when shards is 0.
        seed: decides which images go (max_images) and the order inside shards.
        nested: an image folder's people have their pictures in sub-folders too; without it, such a root is refused, as
            it may lie too high (train/PERSON/, val/PERSON/).
        labels: of several files or folders. ``disjoint`` refuses those that share a label; in ``shared`` label spaces a
            label is one person wherever it stands; ``separate`` ones tell people apart by file and label together.
        filters: the filters that are on (none), in the order in which they are asked, each with all its settings; given
            as a list of names, as ``{blur: {min_variance: 30}}``, or one by one, ``filters.blur.min_variance``.
    """

    image_size: tuple[int, int] = (112, 112)
    max_pixels: int = within(MAX_PIXELS, 1, 1 << 30)
    near_within: int = within(24, -1, 64)
    near_across: int = within(24, -1, 64)
    near_mirror: int = within(-1, -1, 64)
    recall: float = within(0.95, 0.5, 0.9999)
    conflict_policy: str = one_of("drop", "keep-larger", "keep")
    min_images: int = within(2, 1, 1 << 31)
    max_images: int = within(0, 0, 1 << 31)
    shards: int = within(0, 0, 100_000)
    shard_bytes: int = within(256 << 20, 1 << 20, 1 << 40)
    seed: int = within(0, 0, (1 << 63) - 1)
    nested: bool = False
    labels: str = one_of("disjoint", "shared", "separate")
    filters: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        size = self.image_size
        if len(size) != 2 or min(size) < 0 or (min(size) == 0) != (max(size) == 0):
            raise ConfigError(f"image_size: {list(size)} is not [height, width] in pixels (or [0, 0] for any)")
        check_settings(self)
        if self.filters:
            from pipelines.filters.registry import settle  # OpenCV, and packages that bring filters

            object.__setattr__(self, "filters", settle(self.filters))
        if 0 < self.max_images < self.min_images:
            raise ConfigError(f"max_images: {self.max_images} is below min_images {self.min_images}")

    @property
    def filter_reasons(self) -> tuple[str, ...]:
        """The drop reasons of the filters that are on; their codes follow those of the build's own."""
        if not self.filters:
            return ()
        from pipelines.filters.registry import make_filters, reasons_of

        return reasons_of(make_filters(self.filters))

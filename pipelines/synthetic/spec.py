"""What decides a synthetic set, and the sets that are known by name."""

from __future__ import annotations

from dataclasses import dataclass, fields

from faceshards.errors import ConfigError
from pipelines.synthetic.pairs import GENUINE
from pipelines.synthetic.spoiled import SPOILED

CLEAN, SINGLE = "clean", "single_image"
COPIES = ("exact_duplicate", "near_duplicate", "exact_conflict", "near_conflict")
BROKEN = ("undecodable", "truncated", "wrong_size")
MIRRORED = ("mirrored_duplicate", "mirrored_conflict")
LEAKED = ("test_exact", "test_near", "test_mirrored")


@dataclass(frozen=True)
class SyntheticSpec:
    """What decides a synthetic set, to the byte.

    Args:
        identities: identities with two or more images.
        images: their photographs in all, long-tailed over the identities; defects come on top.
        defects: planted records of each kind; 0 makes a clean set.
        mirrored: planted records of each kind of mirrored copy.
        leaked: planted records of each kind of test picture.
        spoiled: planted records of each kind of spoiled picture.
        unseen: further identities, drawn only for ``verification.bin``.
        pairs: verification pairs, half genuine and half impostor in each of ten folds; 0 leaves the file's lists empty.
        seed: another seed, another set.
    """

    identities: int = 360
    images: int = 7200
    defects: int = 24
    mirrored: int = 0
    leaked: int = 0
    spoiled: int = 0
    unseen: int = 120
    pairs: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ConfigError(f"synthetic: {field.name}: {getattr(self, field.name)} is negative")
        if self.identities < 2 or self.images < 2 * self.identities:
            raise ConfigError(f"synthetic: {self.images} images for {self.identities} identities: two each are needed")
        if self.pairs % 20:
            raise ConfigError(f"synthetic: pairs: {self.pairs} is no multiple of 20 (ten folds, half of each genuine)")
        if self.pairs and (self.unseen < 2 or self.pairs // 2 > self.unseen * GENUINE):
            raise ConfigError(
                f"synthetic: {self.pairs} pairs need {max(2, -(-self.pairs // 2 // GENUINE))} unseen identities"
            )

    @property
    def records(self) -> int:
        """Image records in train.rec, defects included."""
        planted = self.defects * len((*COPIES, *BROKEN, SINGLE))
        more = self.mirrored * len(MIRRORED) + self.leaked * len(LEAKED) + self.spoiled * len(SPOILED)
        return self.images + planted + more


SETS = {
    "synthetic": SyntheticSpec(),
    "synthetic_leaks": SyntheticSpec(identities=60, images=1200, defects=8, mirrored=8, leaked=8, unseen=40, pairs=400),
    "synthetic_spoiled": SyntheticSpec(identities=60, images=1200, defects=0, spoiled=16, unseen=40, pairs=400),
}
"""The sets of configs/datasets.yaml that are rendered, by name."""

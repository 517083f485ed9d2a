"""Embeddings of a whole source as Parquet: a part for every block of images, so that a run can be interrupted."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.embedder import Embedder
from evaluation.image_sources import Images, open_source
from evaluation.models.model import Model
from faceshards.errors import FaceshardsError
from faceshards.files import differences, replacing, write_json
from faceshards.formats.json_files import read_json
from faceshards.locks import exclusive
from faceshards.progress import bar
from faceshards.reading import for_arrow, names_in
from faceshards.storage.location import Location, StoredPath
from training.data.transforms import SIZE, ImageError, header_size

LOOKED_AT = 32  # images of a block, before all are embedded

log = logging.getLogger(__name__)


def embed(source: Location | Sequence[Location], out: Location, model: Model, quiet: bool = False) -> dict[str, Any]:
    """Returns counts (images, embedded, left_out) after writing the embeddings of all images of a source into `out`.

    `source` is what open_source() takes: a path, or several of pictures. `out` may be a prefix in a bucket.

    `out`/part-NNNNN.parquet has a row per image, in the source's order: sid int64, key string, label string, embedding
    fixed-size list of float32 (image and mirror image added, not normalised; NaN if there is none), cause string (why
    there is none). `out`/_embed.json (the underscore hides it from Parquet readers) says of what and by which model,
    and, once all is there, the counts.

    Interrupted at any moment, the same call goes on with the first block that is not there.

    Raises:
        FaceshardsError: `out` holds embeddings of something else, another process is at work there, a file cannot be
            read or written, or no image has an embedding (the parts say why).
    """
    if out.exists() and not out.is_dir():
        raise FaceshardsError(f"{out}: no folder; the last name is that of the folder for the embeddings")
    with tempfile.TemporaryDirectory(prefix="faceshards-") as work, contextlib.ExitStack() as stack:
        found = open_source([source] if isinstance(source, Path | StoredPath) else source, Path(work))
        _check_sizes(source if isinstance(source, Path | StoredPath) else source[0], found.blocks)
        stack.enter_context(exclusive(out))
        request = {"source": found.identity, "model": model.sha256, "blocks": len(found.blocks)}
        if model.channels != "rgb":
            request["channels"] = model.channels
        facts = out / "_embed.json"
        if facts.exists():
            if different := differences(_request(facts), request):
                raise FaceshardsError(f"{out}: holds embeddings of another {different[0].name}; choose another folder")
        elif any(map(_is_part, names_in(out))):
            raise FaceshardsError(f"{out}: holds Parquet files that are not of this command; choose another folder")
        write_json({"request": request, "backbone": model.backbone}, facts)
        counts = _blocks(found.blocks, found.total, out, Embedder(model.forward), quiet)
        write_json({"request": request, "backbone": model.backbone, "card": model.card, **counts}, facts)
        if lost := counts["left_out"]:
            told = f"{out}: {lost:,} of {counts['images']:,} images have no embedding, the first: {_first_cause(out)}"
            if lost == counts["images"]:
                raise FaceshardsError(told)
            log.warning("%s; column cause has the others", told)
    return counts


def _first_cause(out: Location) -> str:
    """Returns key and cause of the first image that has no embedding."""
    for name in sorted(filter(_is_part, names_in(out))):
        table = pq.read_table(for_arrow(out / name), columns=["key", "cause"])
        if rows := table.filter(table["cause"].is_valid()).slice(0, 1).to_pylist():
            return f"{rows[0]['key']}: {rows[0]['cause']}"
    return ""


def _is_part(name: str) -> bool:
    return name.endswith(".parquet")


def _check_sizes(source: Location, blocks: Sequence[Callable[[int], Images]]) -> None:
    """Refuses a source whose images are all of another size than models take, as far as a look at some can tell."""
    sizes: Counter[tuple[int, ...]] = Counter()
    for number in {0, len(blocks) // 2, len(blocks) - 1} & set(range(len(blocks))):
        images = blocks[number](0).images
        for image in images[:: max(1, len(images) // LOOKED_AT)]:
            with contextlib.suppress(ImageError):
                sizes[header_size(image)] += 1
    if sizes and SIZE not in sizes:
        (height, width), count = sizes.most_common(1)[0]
        raise FaceshardsError(
            f"{source}: of {sizes.total()} images that were looked at none is of {SIZE[0]} x {SIZE[1]} pixels, which "
            f"models take ({height} x {width}: {count}): align and resize them first"
        )


def _request(facts: Location) -> dict[str, Any]:
    """Returns what an earlier call was asked for."""
    try:
        return dict(read_json(facts)["request"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FaceshardsError(f"{facts}: damaged: {error}; remove the folder to begin anew") from None


def _blocks(blocks: Any, total: int, out: Location, embedder: Embedder, quiet: bool) -> dict[str, int]:
    """Writes the parts that are not there yet; returns the counts over all."""
    images = lost = 0
    there = names_in(out)
    with bar("embed", total or None, quiet) as shown:
        for number, read in enumerate(blocks):
            path = out / f"part-{number:05d}.parquet"
            if path.name in there:
                try:
                    missing = pq.read_table(for_arrow(path), columns=["cause"])["cause"]
                except (pa.ArrowException, KeyError) as error:
                    cause = " ".join(str(error).split())[:200]
                    raise FaceshardsError(f"{path}: damaged: {cause}; remove this file") from None
                count, without = len(missing), len(missing) - missing.null_count
                shown.update(count)
            else:
                count, without = _write(path, read(images), embedder, shown)
            images, lost = images + count, lost + without
    return {"images": images, "embedded": images - lost, "left_out": lost}


def _write(path: Location, block: Images, embedder: Embedder, shown: Any) -> tuple[int, int]:
    """Writes the part of a block; returns its images and how many have no embedding."""
    rows: list[np.ndarray] = []
    causes: list[str | None] = [cause or None for cause in block.causes]
    for views, problems in embedder.batches(block.images):
        start = sum(map(len, rows))
        rows.append(views[0] + views[1])  # (n, D)
        for place, cause in problems.items():
            causes[start + place] = causes[start + place] or cause
        shown.update(len(rows[-1]))
    found = np.concatenate(rows) if rows else np.zeros((0, embedder.dim), np.float32)  # (N, D)
    without = np.array([cause is not None for cause in causes], bool)
    found[without] = np.nan  # Parquet's lists of a fixed size cannot be null
    table = pa.table(
        {
            "sid": pa.array(block.sids, pa.int64()),
            "key": pa.array(block.keys, pa.string()),
            "label": pa.array(block.labels, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1]),
            "cause": pa.array(causes, pa.string()),
        }
    )
    with replacing(path) as temporary, open(temporary, "wb") as file:
        pq.write_table(table, file, compression="none", use_dictionary=False)
        file.flush()
        os.fsync(file.fileno())  # a part that has its name is whole, also after a power cut
    return len(causes), int(without.sum())

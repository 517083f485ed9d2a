"""Writes the embedded synthetic set: faces of invented identities in InsightFace's layout, with known defects.

Every defect is one added record, written down in ``defects.csv``, so that a build's drops can be checked one by one:

==================  =====================================================  ==========================
kind                what the record holds                                  what leaves besides it
==================  =====================================================  ==========================
exact_duplicate     the bytes of `of_key`, same identity                   -
near_duplicate      `of_key` re-encoded, resized or toned, same identity   - (or `of_key` in its place)
exact_conflict      the bytes of `of_key`, which is another identity's     `of_key`
near_conflict       `of_key` re-encoded, resized or toned, likewise        `of_key`
undecodable         nothing, or random bytes                               -
truncated           a JPEG cut within its scan                             -
wrong_size          a face at another size than 112 x 112                  -
single_image        the only image of its identity                         -
mirrored_duplicate  `of_key` mirrored and changed so, same identity        - (or `of_key` in its place)
mirrored_conflict   `of_key` mirrored and changed so, another identity's   `of_key`
test_exact          the bytes of picture `of_key` of verification.bin      -
test_near           that picture re-encoded, resized or toned              -
test_mirrored       that picture mirrored and changed so                   -
blurred ... narrow  a face spoiled so (pipelines.synthetic.spoiled)        -
==================  =====================================================  ==========================

Mirrored copies, test pictures and spoiled ones are only in sets that ask for them. No photograph is copied twice and no
identity is left with fewer than two images, so the list is complete.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from faceshards.errors import ConfigError, FaceshardsError
from faceshards.formats.recordio import Writer
from pipelines.synthetic.copies import near_copy
from pipelines.synthetic.faces import SIZE, draw_face, encode_face, encode_jpeg, generator
from pipelines.synthetic.pairs import POSES, pictures_of_pairs, write_pairs
from pipelines.synthetic.spec import BROKEN, CLEAN, COPIES, LEAKED, MIRRORED, SINGLE, SyntheticSpec
from pipelines.synthetic.spoiled import SPOILED, spoil

_SIZES = ((96, 112), (112, 96), (128, 128), (64, 64))  # height, width in pixels of wrong_size records
_SPREAD = 0.8  # sigma of the log-normal image counts: with 20 images a head the largest identity has over 100


@dataclass(frozen=True)
class _Record:
    """One image record to come: what it is, and which drawing it starts from."""

    kind: str
    identity: int  # of the drawing; the record of a conflict or a test picture stands under another one
    image: int


def write_set(
    out_dir: Path, spec: SyntheticSpec, progress: Callable[[int], None] | None = None, workers: int = 1
) -> None:
    """Writes train.rec, train.idx, property, verification.bin and defects.csv into `out_dir`, all at once at the end.

    Args:
        out_dir: the set's folder; must not exist yet.
        spec: decides every byte.
        progress: called with the number of image records just written; they add up to `spec.records`.
        workers: processes that draw; with 1 no process is started. They change no byte.

    Raises:
        FaceshardsError: `out_dir` exists, or the disk refuses.
        ConfigError: more defects than `spec` has room for.
    """
    if out_dir.exists():
        raise FaceshardsError(f"{out_dir}: exists already")
    plan = _plan(spec)
    temporary = out_dir.with_name(f".{out_dir.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
        temporary.mkdir(parents=True)
        if workers == 1:
            _write(temporary, spec, plan, map, progress)
        else:
            # spawned, not forked: the children must not inherit anyone's threads
            with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
                _write(temporary, spec, plan, partial(pool.map, chunksize=4), progress)
        temporary.rename(out_dir)
    except OSError as error:
        raise FaceshardsError(f"{error.filename or temporary}: {error.strerror or error}") from None


def _write(
    folder: Path,
    spec: SyntheticSpec,
    plan: list[list[_Record]],
    run: Callable[..., Iterator[Any]],
    progress: Callable[[int], None] | None,
) -> None:
    """Draws with `run` (map, or a pool's) and writes the five files."""
    end = 1 + sum(len(records) for records in plan)  # key after the last image
    (folder / "property").write_text(f"{len(plan)},{SIZE},{SIZE}\n", encoding="ascii")
    firsts, key = [], 1
    with Writer(folder / "train.rec") as file:
        file.write(0, [end, end + len(plan)], b"")
        for label, (records, images) in enumerate(zip(plan, run(partial(_render, spec.seed), plan), strict=True)):
            firsts.append(key)
            for image in images:
                file.write(key, label, image)
                key += 1
            if progress:
                progress(len(records))
        for key, (first, last) in enumerate(zip(firsts, [*firsts[1:], end], strict=True), end):
            file.write(key, [first, last], b"")
    _write_defects(folder / "defects.csv", spec, plan, firsts)
    unseen = _unseen(spec)
    poses = [[_Record(CLEAN, identity, image) for image in range(POSES)] for identity in unseen]
    drawn = dict(zip(unseen, run(partial(_render, spec.seed), poses), strict=True))
    pictures = [drawn[identity][pose] for identity, pose in _pictures(spec)]
    write_pairs(folder / "verification.bin", pictures)


def _plan(spec: SyntheticSpec) -> list[list[_Record]]:
    """Returns for every label its records, in the order of the file. An identity is its label.

    Raises:
        ConfigError: more defects than there are photographs to copy.
    """
    rng = generator(spec.seed)
    classes = spec.identities + spec.defects
    singles = set(rng.choice(classes, spec.defects, replace=False).tolist())
    many = [identity for identity in range(classes) if identity not in singles]
    counts = dict(zip(many, _counts(rng, spec), strict=True))
    placed: list[list[tuple[float, _Record]]] = [[] for _ in range(classes)]
    for identity in singles:
        placed[identity].append((0.0, _Record(SINGLE, identity, 0)))
    for identity, count in counts.items():
        at = rng.random(count).tolist()
        placed[identity] = [(at[image], _Record(CLEAN, identity, image)) for image in range(count)]

    free = [(identity, image) for identity, count in counts.items() for image in range(count)]
    rng.shuffle(free)
    staying = dict(counts)
    asked = {**dict.fromkeys(COPIES, spec.defects), **dict.fromkeys(MIRRORED, spec.mirrored)}
    # conflicts first: they are harder to place
    for kind in (*reversed(COPIES), *reversed(MIRRORED)):
        conflict = kind.endswith("conflict")
        for _ in range(asked[kind]):
            pick = next((i for i, (identity, _) in enumerate(free) if not conflict or staying[identity] > 2), None)
            if pick is None:
                raise ConfigError(f"synthetic: no room for {asked[kind]} defects of kind {kind}")
            identity, image = free.pop(pick)
            host, after = identity, placed[identity][image][0]
            if conflict:
                staying[identity] -= 1  # the original goes with its copy
                host, after = int(rng.choice([other for other in many if other != identity])), 0.0
            # a copy follows its original, so that of two equal ones the planted one is the later
            placed[host].append((rng.uniform(after, 1.0), _Record(kind, identity, image)))
    following = dict(counts)

    def plant(kind: str, number: int) -> None:
        for host in rng.choice(many, number).tolist():
            placed[host].append((rng.random(), _Record(kind, host, following[host])))  # a drawing of its own
            following[host] += 1

    for kind in BROKEN:
        plant(kind, spec.defects)
    pictures = sorted({*_pictures(spec)})
    if spec.leaked * len(LEAKED) > len(pictures):
        raise ConfigError(f"synthetic: no {spec.leaked * len(LEAKED)} pictures in verification.bin to leak")
    chosen = iter(rng.permutation(len(pictures)).tolist())
    for kind in LEAKED:
        for _ in range(spec.leaked):
            record = _Record(kind, *pictures[next(chosen)])
            placed[int(rng.choice(many))].append((rng.random(), record))
    for kind in SPOILED:
        plant(kind, spec.spoiled)
    return [[record for _, record in sorted(records, key=lambda pair: pair[0])] for records in placed]


def _counts(rng: np.random.Generator, spec: SyntheticSpec) -> list[int]:
    """Returns the images of each identity: at least two, log-normal beyond, `spec.images` in all."""
    weights = rng.lognormal(0.0, _SPREAD, spec.identities)
    steps = np.floor(np.cumsum(weights) / weights.sum() * (spec.images - 2 * spec.identities) + 0.5).astype(int)
    return (2 + np.diff(steps, prepend=0)).tolist()


def _render(seed: int, records: Iterable[_Record]) -> list[bytes]:
    """Returns the encoded image of each record; runs in a worker process."""
    return [_encode(seed, record) for record in records]


def _encode(seed: int, record: _Record) -> bytes:
    rng = generator(seed, record.identity, record.image, 1)  # apart from the drawing's own numbers
    match record.kind:
        case "near_duplicate" | "near_conflict" | "test_near":
            return near_copy(rng, encode_face(seed, record.identity, record.image))
        case "mirrored_duplicate" | "mirrored_conflict" | "test_mirrored":
            return near_copy(rng, encode_face(seed, record.identity, record.image), mirrored=True)
        case "undecodable":
            return b"" if rng.random() < 0.5 else b"\0" + rng.bytes(int(rng.integers(200, 4000)))
        case "truncated":
            whole = encode_face(seed, record.identity, record.image)
            scan = whole.index(b"\xff\xda")
            return whole[: int(scan + (len(whole) - scan) * rng.uniform(0.2, 0.8))]
        case "wrong_size":
            picture, quality = draw_face(seed, record.identity, record.image)
            height, width = _SIZES[rng.integers(len(_SIZES))]
            return encode_jpeg(np.asarray(cv2.resize(picture, (width, height)), np.uint8), quality)
        case kind if kind in SPOILED:
            picture, quality = draw_face(seed, record.identity, record.image)
            return encode_jpeg(spoil(rng, picture, kind), quality)
    return encode_face(seed, record.identity, record.image)


def _write_defects(path: Path, spec: SyntheticSpec, plan: list[list[_Record]], firsts: list[int]) -> None:
    """Writes one line for each planted record, by key."""
    keyed = [
        (first + place, label, record)
        for label, (first, records) in enumerate(zip(firsts, plan, strict=True))
        for place, record in enumerate(records)
    ]
    home = {(record.identity, record.image): key for key, _, record in keyed if record.kind == CLEAN}
    home |= {picture: number for number, picture in reversed([*enumerate(_pictures(spec))])}
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("key", "identity", "kind", "of_key"))
        for key, label, record in keyed:
            if record.kind != CLEAN:
                copied = record.kind in (*COPIES, *MIRRORED, *LEAKED)
                original = home[record.identity, record.image] if copied else ""
                writer.writerow((key, label, record.kind, original))


def _unseen(spec: SyntheticSpec) -> range:
    """Returns the identities that no clean training record shows."""
    classes = spec.identities + spec.defects
    return range(classes, classes + spec.unseen)


def _pictures(spec: SyntheticSpec) -> list[tuple[int, int]]:
    """Returns identity and pose of the pictures of verification.bin."""
    return pictures_of_pairs(spec.seed, _unseen(spec), spec.pairs)

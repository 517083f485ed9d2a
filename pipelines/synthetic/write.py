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
==================  =====================================================  ==========================

No photograph is copied twice and no identity is left with fewer than two images, so the list is complete.
"""

from __future__ import annotations

import csv
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceshards.errors import ConfigError, FaceshardsError
from faceshards.formats.recordio import Writer
from pipelines.synthetic.faces import SIZE, draw_face, encode_face, encode_jpeg, generator

NEAR_BITS = 16
"""A planted near copy is at most this far from its original; the pipeline's default limit is 24."""

CLEAN, SINGLE = "clean", "single_image"
COPIES = ("exact_duplicate", "near_duplicate", "exact_conflict", "near_conflict")
BROKEN = ("undecodable", "truncated", "wrong_size")

_SIZES = ((96, 112), (112, 96), (128, 128), (64, 64))  # height, width in pixels of wrong_size records
_SPREAD = 0.8  # sigma of the log-normal image counts: with 20 images a head the largest identity has over 100
_POSES = 6  # photographs of each unseen identity
_GENUINE = _POSES * (_POSES - 1) // 2  # genuine pairs of an identity, none of them twice


@dataclass(frozen=True)
class SyntheticSpec:
    """What decides a synthetic set, to the byte.

    Args:
        identities: identities with two or more images.
        images: their photographs in all, long-tailed over the identities; defects come on top.
        defects: planted records of each kind; 0 makes a clean set.
        unseen: further identities, drawn only for ``verification.bin``.
        pairs: verification pairs, half genuine and half impostor in each of ten folds; 0 leaves the file's lists empty.
        seed: another seed, another set.
    """

    identities: int = 360
    images: int = 7200
    defects: int = 24
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
        if self.pairs and (self.unseen < 2 or self.pairs // 2 > self.unseen * _GENUINE):
            raise ConfigError(
                f"synthetic: {self.pairs} pairs need {max(2, -(-self.pairs // 2 // _GENUINE))} unseen identities"
            )

    @property
    def records(self) -> int:
        """Image records in train.rec, defects included."""
        return self.images + self.defects * len((*COPIES, *BROKEN, SINGLE))


@dataclass(frozen=True)
class _Record:
    """One image record to come: what it is, and which drawing it starts from."""

    kind: str
    identity: int  # of the drawing; a conflict's record stands under another one
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
    _write_defects(folder / "defects.csv", plan, firsts)
    unseen = range(len(plan), len(plan) + spec.unseen)  # identities no training record shows
    poses = [[_Record(CLEAN, identity, image) for image in range(_POSES)] for identity in unseen]
    drawn = dict(zip(unseen, run(partial(_render, spec.seed), poses), strict=True))
    _write_pairs(folder / "verification.bin", spec, drawn)


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
    for kind in reversed(COPIES):  # conflicts first: they are harder to place
        conflict = kind.endswith("conflict")
        for _ in range(spec.defects):
            pick = next((i for i, (identity, _) in enumerate(free) if not conflict or staying[identity] > 2), None)
            if pick is None:
                raise ConfigError(f"synthetic: no room for {spec.defects} defects of kind {kind}")
            identity, image = free.pop(pick)
            host, after = identity, placed[identity][image][0]
            if conflict:
                staying[identity] -= 1  # the original goes with its copy
                host, after = int(rng.choice([other for other in many if other != identity])), 0.0
            # a copy follows its original, so that of two equal ones the planted one is the later
            placed[host].append((rng.uniform(after, 1.0), _Record(kind, identity, image)))
    following = dict(counts)
    for kind in BROKEN:
        for host in rng.choice(many, spec.defects).tolist():
            placed[host].append((rng.random(), _Record(kind, host, following[host])))  # a drawing of its own
            following[host] += 1
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
        case "near_duplicate" | "near_conflict":
            return _near_copy(rng, encode_face(seed, record.identity, record.image))
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
    return encode_face(seed, record.identity, record.image)


def _near_copy(rng: np.random.Generator, original: bytes) -> bytes:
    """Returns another file of the same photograph, within NEAR_BITS of it."""
    pixels = cv2.imdecode(np.frombuffer(original, np.uint8), cv2.IMREAD_COLOR)
    small = cv2.resize(cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    tone = int(rng.choice([-18, 18]))
    toned, small_toned = (np.clip(image.astype(np.int16) + tone, 0, 255) for image in (pixels, small))
    variants = [(pixels, 40), (pixels, 55), (small, 90), (toned, 80), (small_toned, 70)]
    order = [variants[i] for i in rng.permutation(len(variants))]
    for picture, quality in [*order, (pixels, 97)]:  # the last is hardly a change: always near
        copy = encode_jpeg(np.asarray(picture, np.uint8), quality)
        if copy != original and np.count_nonzero(_hash(copy) != _hash(original)) <= NEAR_BITS:
            return copy
    raise FaceshardsError("synthetic: a re-encoded photograph is further from itself than it can be")


def _hash(image: bytes) -> NDArray[np.bool_]:
    """Returns (256,) bits: the 16 x 16 lowest frequencies of the half-size gray image, above their median or not."""
    gray = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2)
    waves = cv2.dct(cv2.resize(gray, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32))[1:17, 1:17]
    return np.asarray(waves > np.median(waves)).ravel()


def _write_defects(path: Path, plan: list[list[_Record]], firsts: list[int]) -> None:
    """Writes one line for each planted record, by key."""
    keyed = [
        (first + place, label, record)
        for label, (first, records) in enumerate(zip(firsts, plan, strict=True))
        for place, record in enumerate(records)
    ]
    home = {(record.identity, record.image): key for key, _, record in keyed if record.kind == CLEAN}
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("key", "identity", "kind", "of_key"))
        for key, label, record in keyed:
            if record.kind != CLEAN:
                original = home[record.identity, record.image] if record.kind in COPIES else ""
                writer.writerow((key, label, record.kind, original))


def _write_pairs(path: Path, spec: SyntheticSpec, drawn: dict[int, list[bytes]]) -> None:
    """Writes InsightFace's .bin: a pickle of (encoded images, two for each pair; whether a pair is genuine)."""
    rng = generator(spec.seed, 0, 0, 2)
    images: list[bytes] = []
    same: list[bool] = []
    identities = np.array(list(drawn))
    twins = [(a, b) for a in range(_POSES) for b in range(a)]
    genuine = [(int(i), *twins[t]) for i in identities for t in range(_GENUINE)]
    genuine = [genuine[i] for i in rng.permutation(len(genuine))[: spec.pairs // 2]]
    for fold in range(10):
        size = spec.pairs // 20
        for identity, a, b in genuine[fold * size : (fold + 1) * size]:
            images += [drawn[identity][a], drawn[identity][b]]
        for _ in range(size):
            for identity in rng.choice(identities, 2, replace=False).tolist():
                images.append(drawn[identity][rng.integers(_POSES)])
        same += [True] * size + [False] * size
    path.write_bytes(pickle.dumps((images, same), protocol=4))

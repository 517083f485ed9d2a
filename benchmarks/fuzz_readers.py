"""Mutates a small file of every kind, reads it, and lists what is neither an answer nor an error of one line.

The budget of memory is compared with the peak of this process; a read that takes longer than 20 s is listed too.
tests/faceshards/formats/test_fuzz.py runs a few executions of each kind.
"""

from __future__ import annotations

import io
import json
import pickle
import signal
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pyarrow as pa

from benchmarks.generate_manifest import generate
from evaluation.ijb.lines import read_lines
from evaluation.pair_lists import read_pairs
from faceshards.checksums import file_digest, sealed
from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError
from faceshards.files import write_json
from faceshards.formats import encoded_image, recordio_scan
from faceshards.formats.idx import read_index
from faceshards.formats.json_files import read_json
from faceshards.formats.mindrecord.index import verify_index
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.mindrecord.writer import write_shard
from faceshards.formats.pickles import SPARE
from faceshards.formats.recordio import Writer
from faceshards.formats.safetensors import TensorFile, write_arrays
from faceshards.formats.tar import Tar
from faceshards.formats.torch_zip import read_torch
from faceshards.formats.verification_bin import read_bin, write_bin
from faceshards.progress import peak_memory
from faceshards.reading import open_file
from faceshards.settings import load_yaml

_PICTURE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
_LONGEST = 20  # seconds of one read
_TORCH = (
    b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03"
    b"ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00K\x02K\x03\x86q\x08"
    b"K\x03K\x01\x86q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs."
)


def _jpeg(*options: int) -> bytes:
    return cv2.imencode(".jpg", _PICTURE, options)[1].tobytes()


def _write_torch(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", _TORCH)
        archive.writestr("a/data/0", bytes(24))


def _write_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("0.jpg", _jpeg()), ("ä" * 120 + ".json", b'{"label": 1}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _write_rec(path: Path) -> None:
    with Writer(path) as rec:
        for key in range(4):
            rec.write(key, float(key), _jpeg())


def _write_shard(path: Path) -> None:
    images = [_jpeg()] * 4
    write_shard(path, images, np.array([len(image) for image in images]), np.arange(4), np.arange(4))


def _read_image(path: Path) -> None:
    data = path.read_bytes()
    with suppress(ValueError):  # the cause, which its callers make a line
        if not encoded_image.too_large(encoded_image.image_size(data), 1 << 20):
            encoded_image.decode(data, cv2.IMREAD_COLOR)


def _read_json(path: Path) -> None:
    with suppress(ValueError):
        read_json(path)


def _read_tensors(path: Path) -> None:
    with TensorFile(path) as file:
        file.arrays()


def _read_tar(path: Path) -> None:
    with open_file(path) as file:
        for _ in Tar(file).members():
            pass


def _read_shard(path: Path) -> None:
    with Shard(path) as shard:
        for _ in shard.rows():
            pass


def _read_rec(path: Path) -> None:
    recordio_scan.scan(path, 0, path.stat().st_size)


def _write_index(path: Path) -> None:
    path.write_text("".join(f"{key}\t{64 * key}\n" for key in range(50)), encoding="ascii")


def _write_pairs(path: Path) -> None:
    path.write_text("2\t3\nAda_B\t1\t2\nAda_B\t1\tÇelik\t3\n", encoding="utf-8")


def _write_lines(path: Path) -> None:
    path.write_text("".join(f"{number}.jpg {number // 3} {number}.5\n" for number in range(20)), encoding="ascii")


def _read_lines(path: Path) -> None:
    found = read_lines(path, {"image": pa.string(), "template": pa.float64(), "score": pa.float64()})
    found.integers("template")


def _read_info(path: Path) -> None:
    """As somebody who signs what he writes."""
    try:
        found = read_json(path)
        write_json(sealed(found), path)
    except (ValueError, AttributeError):
        return
    Manifest(path)


def _read_images_table(path: Path) -> None:
    """As somebody who writes another table's checksum into dataset.json."""
    whole = path.parent.parent.parent
    info = read_json(whole / "dataset.json")
    size, digest = file_digest(path)
    info["files"][path.relative_to(whole).as_posix()] = {"bytes": size, "sha256": digest}
    write_json(sealed(info), whole / "dataset.json")
    found = Manifest(whole)
    found.table("images")
    for _ in found.batches("images"):
        pass


# By kind: the file's name, what writes it, what reads it.
KINDS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "JPEG": ("a.jpg", lambda path: path.write_bytes(_jpeg()), _read_image),
    "progressive JPEG": (
        "a.jpg",
        lambda path: path.write_bytes(_jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        _read_image,
    ),
    "PNG": ("a.png", lambda path: path.write_bytes(cv2.imencode(".png", _PICTURE)[1].tobytes()), _read_image),
    ".bin": ("a.bin", lambda path: write_bin(path, [_jpeg()] * 4, [True, False]), read_bin),
    ".bin of arrays": (
        "a.bin",
        lambda path: path.write_bytes(pickle.dumps(([np.frombuffer(_jpeg(), np.uint8)] * 2, np.ones(1, bool)), 2)),
        read_bin,
    ),
    ".pth": ("a.pth", _write_torch, read_torch),
    ".safetensors": ("a.safetensors", lambda path: write_arrays(path, {"w": np.ones((2, 3))}), _read_tensors),
    "JSON": ("a.json", lambda path: path.write_text(json.dumps({"a": [1, 2.5, None, {"b": "ä"}]})), _read_json),
    ".idx": ("a.idx", _write_index, read_index),
    ".rec": ("a.rec", _write_rec, _read_rec),
    ".tar": ("a.tar", _write_tar, _read_tar),
    "dataset.json": ("set/dataset.json", lambda path: generate(path.parent, 100), _read_info),
    "Parquet of a dataset": (
        "set/manifest/images.parquet/part-00000.parquet",
        lambda path: generate(path.parent.parent.parent, 100),
        _read_images_table,
    ),
    "pairs": ("pairs.txt", _write_pairs, read_pairs),
    "IJB's lists": ("a.txt", _write_lines, _read_lines),
    "YAML": ("a.yaml", lambda path: path.write_text("a: 1\nb: [x, {c: 2.5}]\nd: &e {f: 1}\ng: *e\n"), load_yaml),
    "MindRecord": ("a.mindrecord", _write_shard, _read_shard),
    "MindRecord's .db": (
        "a.mindrecord.db",
        lambda path: _write_shard(path.with_suffix("")),
        lambda path: verify_index(path.with_suffix("")),
    ),
}
_NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    struct.pack("<Q", 1 << 40),
    b"\x80",
    b"[[[[",
    b"\xff\xda",
)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns a file with a few bytes changed, numbers written over others, pieces left out, repeated or moved."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        size = max(len(found), 1)
        at, length = int(rng.integers(size)), int(rng.integers(1, 1 + min(size, 64)))
        match int(rng.integers(6)):
            case 0:
                found[at : at + 1] = bytes([rng.integers(256)])
            case 1:
                number = _NUMBERS[rng.integers(len(_NUMBERS))]
                found[at : at + len(number)] = number
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = bytes(found[at : at + length]) * int(rng.integers(1, 200))
            case 4:
                other = int(rng.integers(size))
                found[at : at + length] = found[other : other + length]
            case _:
                del found[size - length :]
    return bytes(found)


def failures(kind: str, executions: int, seed: int, folder: Path) -> Iterator[str]:
    """Yields a line for each mutated file of a kind that was not read, and not refused by a line.

    Args:
        kind: one of KINDS.
        executions: files.
        seed: of the mutations.
        folder: for them.
    """
    name, write, read = KINDS[kind]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    data = path.read_bytes()
    before = peak_memory()
    for number in range(executions):
        changed = mutated(data, np.random.default_rng((seed, number)))
        path.write_bytes(changed)
        place = f"{kind}, seed {seed}, file {number}"
        try:
            read(path)
        except FaceshardsError as error:
            if "\n" in str(error):
                yield f"{place}: not one line: {error}"
        except Exception as error:
            yield f"{place}: {type(error).__name__}: {error}"
        if (grown := peak_memory() - before) > 2 * len(changed) + SPARE:
            yield f"{place}: {grown >> 20} MiB"
            before += grown


def _too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {_LONGEST} s")


@click.command()
@click.option("--executions", default=50_000, show_default=True, help="Of all kinds together.")
@click.option("--seed", default=0, show_default=True)
def main(executions: int, seed: int) -> None:
    """Fuzz every reader."""
    signal.signal(signal.SIGALRM, _too_long)
    found = 0
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            signal.alarm(_LONGEST * max(1, executions // 1000))
            lines = list(failures(kind, -(-executions // len(KINDS)), seed, Path(folder)))
            signal.alarm(0)
        found += len(lines)
        click.echo(f"{kind:<20} {len(lines)} failures")
        for line in lines[:10]:
            click.echo(f"  {line!r}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

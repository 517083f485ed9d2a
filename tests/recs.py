"""RecordIO files as MXNet writes them, and small images that are no near-duplicates of each other."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from evaluation.models import mxnet_import

MAGIC = b"\x0a\x23\xd7\xce"


def texture(seed: int, height: int = 112, width: int = 112) -> np.ndarray:
    """Returns a (height, width, 3) uint8 picture: smooth random blobs, which survive compression, under fine grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (18, 18, 3)).astype(np.float32)
    blobs = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 45 * blobs + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def encode(picture: np.ndarray, suffix: str = ".jpg", *options: int) -> bytes:
    done, data = cv2.imencode(suffix, picture, options)
    assert done
    return data.tobytes()


def jpeg(seed: int, height: int = 112, width: int = 112, quality: int = 90) -> bytes:
    return encode(texture(seed, height, width), ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)


def png(seed: int, height: int = 112, width: int = 112) -> bytes:
    return encode(texture(seed, height, width), ".png")


def with_orientation(image: bytes, orientation: int = 6) -> bytes:
    """Returns a JPEG with an EXIF orientation (6: to be turned by 90 degrees), as a telephone writes it."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    return image[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + image[2:]


def with_scans(image: bytes, scans: int) -> bytes:
    """Returns a progressive JPEG whose last scan comes so many times more."""
    last = image.rindex(b"\xff\xda")
    return image[:-2] + image[last:-2] * scans + image[-2:]


def pack(image: bytes, label: float | Sequence[float] = 0.0, key: int = 0) -> bytes:
    """Returns an image record's payload by MXNet."""
    recordio = mxnet_import.load().recordio
    return recordio.pack(recordio.IRHeader(0, label, key, 0), image)


def pack_flag(flag: int, label: float, image: bytes) -> bytes:
    """Returns a payload whose flag lies about its labels, as no writer makes it."""
    return struct.pack("<IfQQ", flag, label, 0, 0) + image


def write_rec(path: Path, payloads: Iterable[bytes], keys: Iterable[int] | None = None) -> list[int]:
    """Writes a .rec by MXNet, with its .idx if there are keys; returns where each record begins, and the end."""
    index = path.with_suffix(".idx")
    writer = mxnet_import.load().recordio.MXIndexedRecordIO(str(index), str(path), "w")
    payloads = list(payloads)
    offsets = []
    for key, payload in zip(range(len(payloads)) if keys is None else keys, payloads, strict=True):
        offsets.append(writer.tell())
        writer.write_idx(key, payload)
    offsets.append(writer.tell())
    writer.close()
    if keys is None:
        index.unlink()  # only the indexed writer tells where it is
    return offsets


def read_rec(path: Path) -> list[bytes]:
    """Returns the payloads of a .rec as MXNet reads them."""
    reader = mxnet_import.load().recordio.MXRecordIO(str(path), "r")
    payloads = []
    while (payload := reader.read()) is not None:
        payloads.append(payload)
    reader.close()
    return payloads


def write_insightface(folder: Path, identities: Sequence[Sequence[bytes]], header: bool = True) -> list[int]:
    """Writes train.rec, train.idx and property: a header record, the images, one record per identity."""
    images = [(label, image) for label, faces in enumerate(identities) for image in faces]
    first, behind = 1, 1 + len(images)
    payloads = [pack(image, float(label), key) for key, (label, image) in enumerate(images, first)]
    at = first
    for label, faces in enumerate(identities):
        payloads.append(pack(b"", [float(at), float(at + len(faces))], behind + label))
        at += len(faces)
    keys = list(range(first, behind + len(identities)))
    if header:
        payloads.insert(0, pack(b"", [float(behind), float(behind + len(identities))], 0))
        keys.insert(0, 0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "property").write_text(f"{len(identities)},112,112\n", encoding="ascii")
    return write_rec(folder / "train.rec", payloads, keys)


def write_im2rec(
    folder: Path, labelled: Sequence[tuple[float | Sequence[float], bytes]], name: str = "all"
) -> list[int]:
    """Writes a .rec and .idx with keys from 0 and no header; an array label makes its element 0 the identity."""
    folder.mkdir(parents=True, exist_ok=True)
    payloads = [pack(image, label, key) for key, (label, image) in enumerate(labelled)]
    return write_rec(folder / f"{name}.rec", payloads, range(len(payloads)))

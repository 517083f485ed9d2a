"""Not a byte of a dataset changes by accident: fingerprints and tables of known sets, as they have been all along.

A change that means to move one replaces the values here, and says so.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS
from faceshards.dataset.verify import verify
from pipelines.build import Execution, build
from pipelines.config import BuildConfig
from pipelines.sources.find import find_files
from pipelines.synthetic.write import SyntheticSpec, write_set

pytestmark = pytest.mark.numeric

UNSTABLE = ("db_bytes", "db_sha256")  # of shards: an index file's bytes are those of the SQLite at hand
# Of each dataset: its fingerprint (over the shards), a digest of each table (see content), and one of its books.
GOLDEN = {
    "train.rec": {
        "fingerprint": "39f2d954095a421ca85f93df20d1cb366db7e1ce949804c9f85a0366d388b2cf",
        "images": "d9634f2831d8de43a3a11e34ee02fac20e8b87ce69edf65c0f1bf05a33fcf461",
        "identities": "5890ebd36342a1ee550776de2ea078778758e4cc948e4b1fefce9f927c9407d3",
        "shards": "f2c2d46c1eb43e17934e7ffbeadaa82aa8fa13e8f74ac05c2ad9bda815524331",
        "dropped": "52ec1b24705813745bbfef99624de3d80518cd7369a9dcf8ec57a401147c80c9",
        "conflicts": "b930334959eb4c40a89057e950901d8961a6b8783189bf4e82819f28792cc0cd",
        "identity_links": "8b4049f3f467fcd94ee9c992c4e55c4734014f58cd54787c41f820cdd256feb0",
        "books": "4058f04c2dda36a383c8457ed613a91ea5a449a403fa6052952878af0a936566",
    },
    "im2rec.rec": {
        "fingerprint": "69cb0b368891625175dd206351a5b9c914df4ad58a35fc9b3234ae6f764380b9",
        "images": "4296fd1b74c74d31ccb8c257e7d59de251bb682d002dea4cc986e27a3cffc865",
        "identities": "5890ebd36342a1ee550776de2ea078778758e4cc948e4b1fefce9f927c9407d3",
        "shards": "2cfdfae22c3b8dbb478693ce2bea75547f7f324afe1bce5dc180734a18dbd782",
        "dropped": "13edef0e11bec2d5cc51df663c4098e014c8120d74ef705f81d10a4036a35f3e",
        "conflicts": "b930334959eb4c40a89057e950901d8961a6b8783189bf4e82819f28792cc0cd",
        "identity_links": "8b4049f3f467fcd94ee9c992c4e55c4734014f58cd54787c41f820cdd256feb0",
        "books": "edb61c64b31c736d838940a56e5a735fa4d77bc4f8398bcbb1124679299e6270",
    },
    "synthetic": {
        "fingerprint": "8631c34bc77960b52191e077617391058182a87bd78ae98d30b2e069c152248e",
        "images": "fdbe9affacfd74837d55e9eb9fd210488f73be6418caaa8d2937a249b947046a",
        "identities": "b53befa0dd3cdab0440baa4b536a7efb158e226c521c08a43552871dbdee7e28",
        "shards": "6903e1eab18314914369ee5eae7b26d93c27f254641880432341491cc130c981",
        "dropped": "57787776c126d0e9f524c56442ef0da0f6f6c451e1f80d6d0a960b8c96dddb88",
        "conflicts": "c91b7bfa558a7967de25d8a93c9325ad2cad044d780926fbd6c8095f2bffdce3",
        "identity_links": "8851f9ee3e99cc482b055978d757692c7e3f8bd1104bdd4b68b789b7e298558a",
        "books": "dc1da6cbfe2036658e645658b250280b155a7b0ff77b0bf25760110073842863",
    },
}
SYNTHETIC_FILES = {
    "train.rec": "411861aee639559598f13c97fc6708779f62e95216e1c9be01ecb04f7aa8bb26",
    "train.idx": "b68aa40c56ca1ed5b01c89c9305f67440730ab13cf65718794c658136a45480e",
    "defects.csv": "fd987990e2f46a530f80ad90b8fa98c3e9286c184751d7f1ec7a784a3e4ad239",
    "property": "0a48d14510fcf52f1ea63d26bfaf2c9ea94530e7ffa19d9a336978e36e04e231",
    "verification.bin": "7109b4cdfd667619d9783bf875b32c0e821ed634b31d1595cdc882c989e7cf9f",
}


def content(files: list[Path]) -> str:
    """Returns the SHA-256 of a table: names, types and values, whatever Parquet's bytes."""
    table = pa.concat_tables(pq.read_table(file) for file in files)
    digest = hashlib.sha256()
    for field, column in zip(table.schema, table.itercolumns(), strict=True):
        if field.name not in UNSTABLE:
            digest.update(repr((field.name, str(field.type), field.nullable, column.to_pylist())).encode())
    return digest.hexdigest()


def golden(manifest: Manifest) -> dict[str, str]:
    """Returns the fingerprint of a dataset, and a digest of each table and of what its books say."""
    tables = manifest.path / "manifest"
    # The values are of schema 1, whose number was among the books; what came later is beside them in dataset.json.
    books = {"schema_version": 1, **{key: manifest.info[key] for key in ("totals", "dedupe", "warnings")}}
    found = {"fingerprint": manifest.fingerprint}
    for name in SCHEMAS:
        path = tables / f"{name}.parquet"
        found[name] = content(sorted(path.iterdir()) if path.is_dir() else [path])
    found["books"] = hashlib.sha256(json.dumps(books, sort_keys=True).encode()).hexdigest()
    return found


def built(source: Path, out: Path) -> Manifest:
    """Returns the dataset of a source with every setting at its default."""
    return build(out.name, find_files(source)[0], out, BuildConfig(), Execution(workers=1, quiet=True))


@pytest.mark.parametrize("name", ["train.rec", "im2rec.rec"])
def test_real_faces(face_data, tmp_path, name):
    manifest = built(face_data / "orl" / name, tmp_path / name)
    assert golden(manifest) == GOLDEN[name]
    assert list(verify(manifest)) == []


def draws_as_ever() -> bool:
    """Returns whether OpenCV's pictures are those of the goldens: another release rounds some pixels elsewhere, and so
    does its arithmetic (Intel's IPP) for processors without AVX2, or none of it."""
    ipp = cv2.ipp.getIppVersion() if cv2.ipp.useIPP() else ""  # "ippIP AVX2 (l9) 2021.12.0 ..."
    return cv2.__version__.startswith("4.11.") and "AVX" in ipp


@pytest.mark.slow
@pytest.mark.skipif(not draws_as_ever(), reason=f"OpenCV {cv2.__version__} on this processor renders other pixels")
def test_synthetic(tmp_path):
    source = tmp_path / "source"
    write_set(source, SyntheticSpec(), workers=2)
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()}
    assert found == SYNTHETIC_FILES
    manifest = built(source, tmp_path / "synthetic")
    assert golden(manifest) == GOLDEN["synthetic"]
    assert list(verify(manifest)) == []
    files = sum(path.stat().st_size for path in manifest.path.rglob("*") if path.is_file())
    assert files <= 1.05 * manifest.totals["image_bytes"]  # of 3 KB each: larger ones need less

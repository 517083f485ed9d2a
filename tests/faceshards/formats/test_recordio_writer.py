"""The RecordIO that we write is MXNet's, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.models import mxnet_import
from faceshards.formats.recordio import MAX_RECORD, Writer
from tests.recs import MAGIC, read_rec

# Payloads full of magic words, whole and halved, at every alignment.
PIECES = st.sampled_from([MAGIC, MAGIC[:2], MAGIC[2:], b"", b"\0", b"abc", b"abcd", bytes(9)])
IMAGES = st.lists(PIECES, max_size=8).map(b"".join)
LABELS = st.one_of(
    st.integers(0, 1 << 24),
    st.floats(0, 1e6, width=32),
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=4),
    st.just([float.fromhex("-0x1.ae4614p+30")]),  # whose bytes are the magic word
)


def by_mxnet(rec: Path, records: list[tuple[int, object, bytes]]) -> None:
    recordio = mxnet_import.load().recordio
    writer = recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "w")
    for key, label, image in records:
        writer.write_idx(key, recordio.pack(recordio.IRHeader(0, label, key, 0), image))
    writer.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 40), LABELS, IMAGES), max_size=6))
def test_bytes_are_mxnets(tmp_path, records):
    ours, theirs = tmp_path / "ours.rec", tmp_path / "theirs.rec"
    with Writer(ours) as file:
        offsets = [file.write(key, label, image) for key, label, image in records]
    by_mxnet(theirs, records)
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.with_suffix(".idx").read_bytes() == theirs.with_suffix(".idx").read_bytes()
    assert [
        payload[len(payload) - len(image) :] for payload, (*_, image) in zip(read_rec(ours), records, strict=True)
    ] == [image for *_, image in records]
    assert offsets == sorted(set(offsets))


def test_the_longest_record_is_the_formats(tmp_path):
    class Long(bytes):
        def __len__(self):
            return MAX_RECORD

    with Writer(tmp_path / "a.rec") as file, pytest.raises(ValueError, match=f"{MAX_RECORD} bytes are more than a rec"):
        file._write(Long())
    assert (tmp_path / "a.rec").stat().st_size == 0

"""The short form of benchmarks/fuzz_readers.py: whatever is done to a file, a reader answers or says a line."""

from __future__ import annotations

import pytest

from benchmarks.fuzz_readers import KINDS, failures


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_file_is_read_or_refused(kind, tmp_path):
    assert list(failures(kind, 60, 1, tmp_path)) == []

"""What every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def face_data() -> Path:
    """The folder of real sample sets: $FACESHARDS_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("FACESHARDS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no sample sets: set FACESHARDS_DATA to the folder that holds dmlc/sample.rec and orl/")
    return folder

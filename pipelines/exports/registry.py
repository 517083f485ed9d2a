"""The formats of exports: nothing outside this folder asks which one it has."""

from __future__ import annotations

from pipelines.exports import folder, im2rec, recordio, webdataset
from pipelines.exports.base import Format

EXPORTS: dict[str, Format] = {"recordio": recordio, "im2rec": im2rec, "folder": folder, "webdataset": webdataset}
"""By name, as they are typed."""

"""What readers of a dataset rely on: the content of dataset.json, and of tables what Arrow takes on trust."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

# What readers rely on in dataset.json.
_INFO = {"name": str, "totals": dict, "fingerprint": str, "files": dict, "warnings": list, "config": dict}
_TOTALS = ("scanned", "kept", "identities", "shards", "conflicts", "identity_links", "image_bytes")


def check_info(info: dict[str, Any]) -> None:
    """Raises KeyError or TypeError if dataset.json lacks what readers rely on."""
    for key, kind in _INFO.items():
        if not isinstance(info[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    if not all(type(info["totals"][key]) is int for key in _TOTALS):
        raise TypeError(f"one of the totals {', '.join(_TOTALS)} is no integer")
    dropped = info["totals"]["dropped"]
    if not isinstance(dropped, dict) or not all(type(count) is int for count in dropped.values()):
        raise TypeError("the total dropped is no dict of integers")
    for name, entry in info["files"].items():
        if not is_inside(name):
            raise ValueError(f"files: {name[:80]!r} is no path of a file in the dataset")
        if type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
            raise TypeError(f"files: {name} has no size or checksum")
    if not all(isinstance(line, str) for line in info["warnings"]):
        raise TypeError("a warning is no text")
    reasons = info.get("reasons", [])
    if not isinstance(reasons, list) or not all(isinstance(reason, str) and reason.isprintable() for reason in reasons):
        raise TypeError("reasons is no list of names")
    sources = info.get("sources", [])
    if not isinstance(sources, list) or not all(map(_is_source, sources)):
        raise TypeError("sources: one has no name or path")


def _is_source(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "path"))


def sound(schema: pa.Schema, rows: pa.Table) -> pa.Table:
    """Returns rows of a table after a look at what Arrow takes on trust: types, nulls, and that text is UTF-8.

    Raises:
        ValueError: one of these is not as the schema says.
    """
    rows = rows.cast(pa.schema([schema.field(name) for name in rows.column_names]))
    rows.validate(full=True)
    return rows


def is_inside(name: str) -> bool:
    """Returns whether a name is one of a file below a folder, wherever that is, which a terminal can show."""
    return name.isprintable() and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))

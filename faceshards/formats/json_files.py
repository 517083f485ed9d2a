"""JSON of others, read without trusting it: a few megabytes of brackets would become gigabytes of lists."""

from __future__ import annotations

import json
from typing import Any

from faceshards.formats.pickles import SPARE
from faceshards.reading import open_file
from faceshards.storage.location import Location

LARGEST = 16 << 20  # bytes: a hundred thousand files in a dataset.json, and as text at most four times as many

# Bytes that a value begun by each of these takes, rounded up, on CPython of 64 bits.
_MADE = {b"[": 128, b"{": 256, b",": 64, b":": 64}


def read_json(path: Location) -> Any:
    """Returns the content of a JSON file.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: no JSON, or not what a file of ours may be; see parse_json().
    """
    with open_file(path, first=LARGEST + 1) as file:
        return parse_json(file.read_at(0, LARGEST + 1))


def parse_json(data: bytes) -> Any:
    """Returns the content of a JSON text in UTF-8.

    Raises:
        ValueError: it is none, is nested too deeply, is longer than LARGEST, or would become more bytes than twice its
            own and SPARE.
    """
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 20} MiB of JSON")
    if sum(data.count(sign) * made for sign, made in _MADE.items()) > 2 * len(data) + SPARE:
        raise ValueError(f"its {len(data)} bytes would become more than twice as many and {SPARE >> 20} MiB")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None

"""What names the identity of a sample in a .tar: KEY.cls, or else KEY.json with `label` or `identity`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from faceshards.formats.json_files import parse_json

_MAX_NAME = 1000  # characters
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.?[0-9]+)([eE][+-]?[0-9]{1,3})?|[+-]?(nan|inf)")


class Label(NamedTuple):
    """The identity that a member names."""

    text: str | None  # label_original; None if there is none to read
    problem: str | None  # why it can be none, None for a sound one


class Form(NamedTuple):
    """One way to say it."""

    limit: int  # bytes of a member
    read: Callable[[bytes], Label]


def _of_class(content: bytes) -> Label:
    """Returns the label in a .cls: a number, or else a name."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return Label(None, "its .cls is no text")
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return _number(int(text))
    return _number(float(text)) if _FLOAT.fullmatch(text) else _name(text)


def _of_json(content: bytes) -> Label:
    """Returns the label in a .json: its entry `label`, or else `identity`; a number or a name."""
    try:
        found = parse_json(content)
    except ValueError as error:
        return Label(None, f"its .json cannot be read: {str(error).split(';')[0]}")
    if not isinstance(found, dict):
        return Label(None, "its .json is no object")
    value = next((found[name] for name in ("label", "identity") if found.get(name) is not None), None)
    if value is None:
        return Label(None, "its .json has neither label nor identity")
    if isinstance(value, str):
        return _name(value.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    return Label(None, f"the label in its .json is neither a number nor text: {_short(value)}")


def _number(value: float) -> Label:
    if isinstance(value, float):
        if not math.isfinite(value):
            return Label(str(value), f"label {value} is not finite")
        if value != math.floor(value) or abs(value) >= 1 << 53:
            return Label(str(value), f"label {value} is {'fractional' if abs(value) < 1 << 53 else 'not exact'}")
        value = int(value)
    if abs(value) >= 1 << 63:
        return Label(None, "its label is a number of more than 63 bits")
    return Label(str(value), f"label {value} is negative" if value < 0 else None)


def _name(text: str) -> Label:
    if not text:
        return Label(None, "its label is empty")
    if len(text) > _MAX_NAME or not text.isprintable():
        return Label(None, f"its label is no name: {_short(text)}")
    return Label(text, None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


FORMS = {"cls": Form(1 << 12, _of_class), "json": Form(1 << 20, _of_json)}
"""By suffix; the first that a sample has is its label."""

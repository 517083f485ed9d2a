"""The page's templates, in which whatever a dataset says is text and nothing else."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from faceshards.files import bytes_text


def environment() -> jinja2.Environment:
    """Returns what renders them: every value is escaped, and what is no printable character is shown as its code."""
    loader = jinja2.PackageLoader("faceshards", "inspection/report")
    made = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=loader,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    )
    made.filters |= {"count": "{:,}".format, "size": bytes_text, "end": _end}
    return made


def _end(text: str, most: int = 30) -> str:
    """Returns a text, or the end of a long one: of paths it is what tells them apart."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _printable(value: Any) -> Any:
    """Returns text without characters that no page should obey, such as those that turn the direction of writing."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)

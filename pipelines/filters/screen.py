"""A build's filters at work on one partition: verdicts, and what was measured."""

from __future__ import annotations

import numpy as np

from faceshards.dataset.schema import CODE, REASONS
from faceshards.errors import BuildError
from pipelines.filters.base import Filter, Image, UndecodableError, Verdict
from pipelines.filters.registry import Settings, make_filters, reasons_of

MEASURED = "measured."
"""What the columns of measured values begin with; FILTER.NAME follows."""


class BrokenFilterError(BuildError):
    """A filter that raises, or returns what is no verdict: a broken program, not a bad record.

    Args:
        row: of the partition.
        message: which filter, and the cause.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(row, message)
        self.row, self.message = row, message

    def __str__(self) -> str:
        return self.message


class Screen:
    """The filters of a build, and the values that they measured of a partition's images.

    Args:
        settings: of the filters, by name.
        rows: of the partition.

    Attributes:
        measured: (rows,) float32 columns by FILTER.NAME; NaN where nothing was measured.
    """

    def __init__(self, settings: Settings, rows: int) -> None:
        self._filters = make_filters(settings)
        self._codes = {reason: code for code, reason in enumerate(reasons_of(self._filters), len(REASONS))}
        self._rows = rows
        self.measured: dict[str, np.ndarray] = {}

    def check(self, row: int, image: Image) -> tuple[int, str] | None:
        """Returns the code of the first reason why an image leaves, and the detail; None if it stays.

        All filters look at it, so that the values measured are those of the whole set.

        Raises:
            BrokenFilterError: see there.
        """
        found = None
        for name, one in self._filters.items():
            image.measured = {}
            try:
                verdict = one.check(image)
            except UndecodableError:
                verdict = ("undecodable", "the decoder refuses its colours")
            except Exception as error:
                raise BrokenFilterError(row, f"filter {name}: {type(error).__name__}: {error}") from None
            else:
                self._check_verdict(row, name, one, verdict)
            self._note(row, name, image.measured)
            if verdict and not found:
                code = CODE.get(verdict[0])
                found = self._codes[verdict[0]] if code is None else code, verdict[1]
        return found

    def _check_verdict(self, row: int, name: str, one: Filter, verdict: Verdict) -> None:
        if verdict is None:
            return
        pair = isinstance(verdict, tuple) and len(verdict) == 2 and all(isinstance(text, str) for text in verdict)
        if not pair:
            raise BrokenFilterError(row, f"filter {name}: returned {verdict!r}, not None or (reason, detail)")
        if verdict[0] not in one.REASONS:
            raise BrokenFilterError(
                row, f"filter {name}: returned the reason '{verdict[0]}', not one of its own: {', '.join(one.REASONS)}"
            )

    def _note(self, row: int, name: str, values: dict[str, float]) -> None:
        for what, value in values.items():
            column = f"{name}.{what}"
            if column not in self.measured:
                self.measured[column] = np.full(self._rows, np.nan, np.float32)
            self.measured[column][row] = value

"""Builds without Dask: their stages run one after the other in this process, where they can be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from pipelines.runner import Execution

Around = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class InProcess(Execution):
    """How such a build is run.

    Args:
        around: gives, for the name of a stage's function, what each of its calls is made within.
    """

    around: Around = nullcontext

    def runner(self) -> Any:
        """Returns what stands for the workers."""
        return _Here(self.around)


class _Here:
    """In place of a Runner."""

    workers = 1

    def __init__(self, around: Around) -> None:
        self._around = around

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Returns what a function returns here."""
        return {"here": function(*arguments)}

    def map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Yields (task, function(*task)) in order."""
        for task in tasks:
            with self._around(function.__name__):
                result = function(*task)
            yield task, result

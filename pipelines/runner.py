"""The engine: runs stage functions over partitions on Dask, survives dying workers, and finds the record that kills.

With cluster.py the only module that knows Dask. A LocalCluster of single-threaded processes by default, or any
scheduler whose workers share the file system, or a bucket.
"""

from __future__ import annotations

import logging
import os
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Future, KilledWorker

from faceshards.errors import BuildError, ConfigError
from pipelines.cluster import (
    FAILURES,
    ClusterError,
    Tls,
    await_worker,
    check_dashboard,
    connected,
    lost,
    name_of,
    one_line,
)
from pipelines.shuffle import FORMS

log = logging.getLogger(__name__)

Task = tuple[Any, ...]

_LOOK = 5  # seconds without a result after which it is looked whether there are workers


class WorkerKilledError(BuildError):
    """A task killed its worker although it ran alone."""

    def __init__(self) -> None:
        super().__init__("the worker died (killed, out of memory, or a crash in the decoder)")


@dataclass(frozen=True)
class Execution:
    """How a build is run; nothing here changes a byte of its result.

    Args:
        workers: local worker processes, 0 for one per core.
        scheduler: address of a Dask scheduler to use instead.
        partition_bytes: aimed size of a partition in bytes, 0 to choose.
        dashboard: serve Dask's dashboard.
        quiet: no progress.
        tls: how a `scheduler` at tls:// is known; None leaves it to Dask's own settings.
        shuffle: of shuffle.FORMS, how a build's images get into the order of its shards.

    Raises:
        BuildError: a dashboard is wanted that this machine cannot serve.
        ConfigError: `tls` is no use, or its files are not; or there is no such form of shuffle.
    """

    workers: int = 0
    scheduler: str | None = None
    partition_bytes: int = 0
    dashboard: bool = False
    quiet: bool = False
    tls: Tls | None = None
    shuffle: str = "auto"

    def __post_init__(self) -> None:
        if self.shuffle not in FORMS:
            raise ConfigError(f"shuffle is {self.shuffle!r}, and has to be one of {', '.join(FORMS)}")
        if self.dashboard and self.scheduler is None:
            check_dashboard()
        if self.tls is not None:
            if not (self.scheduler or "").startswith("tls://"):
                raise ConfigError("certificates are for a scheduler at tls://HOST:PORT")
            self.tls.security()

    def runner(self) -> Runner:
        """Returns the workers."""
        return Runner(self.workers, self.scheduler, self.dashboard, self.tls)


class _Failure:
    """An exception on its way home as a value: Dask would send its traceback too, and hang if that cannot be pickled.

    Args:
        error: what the function raised.
    """

    def __init__(self, error: Exception) -> None:
        try:
            self.pickled = pickle.dumps(error)
            pickle.loads(self.pickled)
        except Exception:
            self.pickled = pickle.dumps(BuildError(f"{type(error).__name__}: {error}"))

    def error(self) -> Exception:
        """Returns it."""
        found: Exception = pickle.loads(self.pickled)
        return found


def _guarded(function: Callable[..., Any], *task: Any) -> Any:
    """Returns function(*task), or a _Failure."""
    try:
        return function(*task)
    except Exception as error:
        return _Failure(error)


class Runner:
    """A pool of workers; a context manager, which leaves Dask's settings and the logging as they were.

    Args:
        workers: processes of a local cluster; 0 takes one per core this process may use.
        scheduler: address of an existing scheduler, instead of a local cluster.
        dashboard: serve Dask's dashboard (local cluster), and log where it is.
        tls: how a scheduler at tls:// is known.

    Raises:
        ClusterError: the scheduler cannot be reached, or there is no worker; later, that either was lost.
    """

    def __init__(
        self, workers: int = 0, scheduler: str | None = None, dashboard: bool = False, tls: Tls | None = None
    ) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._scheduler, self._dashboard, self._tls = scheduler, dashboard, tls
        self._open = ExitStack()

    def __enter__(self) -> Runner:
        with ExitStack() as stack:
            asked = (self._workers, self._scheduler, self._dashboard, self._tls)
            self._client = stack.enter_context(connected(*asked))
            if self._dashboard:
                log.warning("dashboard: %s", self._client.dashboard_link)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def workers(self) -> int:
        """Number of workers asked for; of an existing cluster, those it has now."""
        return self._workers if self._scheduler is None else self._present()

    def _present(self) -> int:
        """Returns the number of workers there are now."""
        with self._loss():
            return len(self._client.scheduler_info(-1)["workers"])

    @contextmanager
    def _loss(self) -> Iterator[None]:
        """Has what Dask raises when the scheduler is lost say so."""
        try:
            yield
        except FAILURES:
            raise lost(name_of(self._scheduler)) from None

    def map(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yields (task, function(*task)) as they finish, in any order.

        A task that was running when its worker died is suspected, and run again after all others, alone: so an
        innocent neighbour is not blamed.

        Raises:
            WorkerKilledError: (yielded in place of the result) the task killed its worker when it ran alone.
            ClusterError: the scheduler is lost, or no worker is left.
            Exception: whatever the function raises.
        """
        name = f"{function.__name__}-{uuid.uuid4().hex}"
        with self._loss():
            futures = {
                self._client.submit(_guarded, function, *task, key=f"{name}-{i}", pure=False): task
                for i, task in enumerate(tasks)
            }
        suspects: list[Task] = []
        try:
            for future in self._finished(list(futures)):
                task = futures.pop(future)
                result = self._result(future)
                if isinstance(result, WorkerKilledError):
                    log.warning("a worker died; its task is run again alone")
                    suspects.append(task)
                else:
                    yield task, result
                future.release()
        finally:
            with suppress(*FAILURES):
                self._client.cancel(list(futures))
        for task in suspects:
            yield task, self.alone(function, task)

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Returns what a function returns, or the exception that it raises, on each worker by its address; of workers
        that die meanwhile nothing."""
        with self._loss():
            found = self._client.run(_guarded, function, *arguments, on_error="ignore")
        return {worker: result.error() if isinstance(result, _Failure) else result for worker, result in found.items()}

    def alone(self, function: Callable[..., Any], task: Task) -> Any:
        """Returns function(*task), run with nothing beside it, or a WorkerKilledError as a value."""
        await_worker(self._client, name_of(self._scheduler))
        key = f"{function.__name__}-{uuid.uuid4().hex}"
        with self._loss():
            future = self._client.submit(_guarded, function, *task, key=key, pure=False)
        (future,) = self._finished([future])
        return self._result(future)

    def _finished(self, futures: Sequence[Future]) -> Iterator[Future]:
        """Yields futures as they finish; raises ClusterError when there is no worker for too long."""
        done: SimpleQueue[Future] = SimpleQueue()
        for future in futures:
            future.add_done_callback(done.put)
        for _ in futures:
            while True:
                try:
                    future = done.get(timeout=_LOOK)
                    break
                except Empty:
                    if not self._present():
                        await_worker(self._client, name_of(self._scheduler))
            yield future

    def _result(self, future: Future) -> Any:
        """Returns what a task returned, or raises what it raised; a WorkerKilledError as a value."""
        with self._loss():
            error = future.exception() if future.status == "error" else None
            result = future.result() if error is None else None
        if isinstance(error, KilledWorker):
            return WorkerKilledError()
        if error is not None:  # of Dask: the function's own come as values
            raise ClusterError(f"{name_of(self._scheduler)}: a worker cannot run this: {one_line(error)}")
        if isinstance(result, _Failure):
            raise result.error()
        return result

    def _kills(self, function: Callable[..., Any], task: Task) -> bool:
        return isinstance(self.alone(function, task), WorkerKilledError)

    def find_killers(self, function: Callable[..., Any], task: Task, low: int, high: int) -> list[int]:
        """Returns which rows in [low, high) kill the worker, by bisection: function(*task, low, high) is run on each.

        Raises:
            BuildError: more than 64 rows do; then it is the machine, not the data.
        """
        killers: list[int] = []
        stack = [(low, high)]
        while stack:
            low, high = stack.pop()
            if low >= high or not self._kills(function, (*task, low, high)):
                continue
            if high - low == 1:
                if not self._kills(function, (*task, low, high)):
                    continue  # its worker was lost to something else: the record is sound
                killers.append(low)
                if len(killers) > 64:
                    raise BuildError("the worker dies on one record after another; it is not the data")
                continue
            middle = (low + high) // 2
            stack += [(middle, high), (low, middle)]
        return killers


def survived(result: Any, doing: str) -> int:
    """Returns a task's result, a count.

    Args:
        result: as `Runner.map` gives it.
        doing: what the task was doing, for the message.

    Raises:
        BuildError: its worker died.
    """
    if isinstance(result, WorkerKilledError):
        raise BuildError(f"{doing}: {result} twice; run the same command to go on")
    return int(result)

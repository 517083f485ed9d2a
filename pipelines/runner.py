"""The engine: runs stage functions over partitions on Dask, survives dying workers, and finds the record that kills.

The only module that knows Dask. A LocalCluster of single-threaded processes by default, or any scheduler that shares
the file system.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, as_completed
from distributed import TimeoutError as DaskTimeoutError

from faceshards.errors import BuildError
from faceshards.progress import logging_at

log = logging.getLogger(__name__)

Task = tuple[Any, ...]
_PATIENCE = 60  # seconds for a worker to come

# glibc returns every freed partition to the kernel, and Dask makes it more eager still; each then costs its page faults
# again, about a tenth of a worker's time. A worker keeps up to 256 MiB instead.
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": 256 << 20,
    "MALLOC_MMAP_THRESHOLD_": 64 << 20,
    "MALLOC_TOP_PAD_": 64 << 20,
}


class WorkerKilledError(BuildError):
    """A task killed its worker although it ran alone."""

    def __init__(self) -> None:
        super().__init__("the worker died (killed, out of memory, or a crash in the decoder)")


class _Behave(WorkerPlugin):
    """What holds in the processes of a local cluster, which are ours as a whole."""

    def setup(self, worker: Worker) -> None:
        # Ctrl-C in a terminal reaches every process; it is for the build to answer, which then ends its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.getLogger("distributed").setLevel(logging.CRITICAL)


def check_dashboard() -> None:
    """Refuses a dashboard that cannot be served.

    Raises:
        BuildError: Bokeh, which draws it, is not installed.
    """
    if importlib.util.find_spec("bokeh") is None:
        raise BuildError("--dashboard needs bokeh, which is not installed: pip install 'faceshards[dashboard]'")


@dataclass(frozen=True)
class Execution:
    """How a build is run; nothing here changes a byte of its result.

    Args:
        workers: local worker processes, 0 for one per core.
        scheduler: address of a Dask scheduler to use instead.
        partition_bytes: aimed size of a partition in bytes, 0 to choose.
        dashboard: serve Dask's dashboard.
        quiet: no progress.

    Raises:
        BuildError: a dashboard is wanted that this machine cannot serve.
    """

    workers: int = 0
    scheduler: str | None = None
    partition_bytes: int = 0
    dashboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.dashboard and self.scheduler is None:
            check_dashboard()


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

    def reraise(self) -> NoReturn:
        """Raises it."""
        raise pickle.loads(self.pickled)


def _guarded(function: Callable[..., Any], *task: Any) -> Any:
    """Returns function(*task), or a _Failure."""
    try:
        return function(*task)
    except Exception as error:
        return _Failure(error)


def _result(future: Future) -> Any:
    """Returns what a finished task returned, or raises what it raised."""
    result = future.result()
    if isinstance(result, _Failure):
        result.reraise()
    return result


class Runner:
    """A pool of workers; a context manager, which leaves Dask's settings and the logging as they were.

    Args:
        workers: processes of a local cluster; 0 takes one per core this process may use.
        scheduler: address of an existing scheduler, instead of a local cluster.
        dashboard: serve Dask's dashboard (local cluster), and log where it is.

    Raises:
        BuildError: the scheduler cannot be reached, or has no workers.
    """

    def __init__(self, workers: int = 0, scheduler: str | None = None, dashboard: bool = False) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._scheduler, self._dashboard = scheduler, dashboard
        self._open = ExitStack()

    def __enter__(self) -> Runner:
        # A task whose worker died is retried by `map`, alone; the profiler would cost 2 % of every worker.
        settings = {
            "distributed.scheduler.allowed-failures": 0,
            "distributed.worker.profile.enabled": False,
            "distributed.nanny.pre-spawn-environ": {
                **dask.config.get("distributed.nanny.pre-spawn-environ"),
                **_MALLOC,
            },
        }
        with ExitStack() as stack:
            # It reports every connection, and a death as a traceback of its own; what matters is said here.
            stack.enter_context(logging_at("distributed", logging.CRITICAL))
            stack.enter_context(dask.config.set(settings))  # until the end: workers that died are started again by it
            try:
                cluster = stack.enter_context(self._local_cluster()) if self._scheduler is None else None
                self._client = stack.enter_context(Client(cluster or self._scheduler, timeout=30, set_as_default=False))
                self._client.wait_for_workers(1, timeout=_PATIENCE)
                if cluster is not None:
                    self._client.register_plugin(_Behave())
            except (OSError, DaskTimeoutError, ValueError) as error:
                where = self._scheduler or "of this machine"
                # Dask says "60: 1" for no worker of one that was wanted.
                cause = f"no worker came within {_PATIENCE} s" if hasattr(error, "expected_workers") else error
                raise BuildError(f"scheduler {where}: {cause or 'no workers'}") from None
            if self._dashboard:
                log.warning("dashboard: %s", self._client.dashboard_link)
            self._open = stack.pop_all()
        return self

    def _local_cluster(self) -> LocalCluster:
        return LocalCluster(
            n_workers=self._workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=":0" if self._dashboard else None,
            # Without a dashboard too the scheduler serves HTTP: on a fixed port, unless told otherwise, that a second
            # build would complain about.
            scheduler_kwargs={} if self._dashboard else {"dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
        )

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def workers(self) -> int:
        """Number of workers asked for; of an existing cluster, those it has now."""
        return self._workers if self._scheduler is None else len(self._client.scheduler_info(-1)["workers"])

    def map(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yields (task, function(*task)) as they finish, in any order.

        A task that was running when its worker died is suspected, and run again after all others, alone: so an
        innocent neighbour is not blamed.

        Raises:
            WorkerKilledError: (yielded in place of the result) the task killed its worker when it ran alone.
            Exception: whatever the function raises.
        """
        name = f"{function.__name__}-{uuid.uuid4().hex}"
        futures = {
            self._client.submit(_guarded, function, *task, key=f"{name}-{i}", pure=False): task
            for i, task in enumerate(tasks)
        }
        suspects: list[Task] = []
        try:
            for future in as_completed(list(futures), loop=self._client.loop):
                task = futures.pop(future)
                if future.status == "error" and isinstance(future.exception(), KilledWorker):
                    log.warning("a worker died; its task is run again alone")
                    suspects.append(task)
                else:
                    yield task, _result(future)
                future.release()
        finally:
            for future in futures:
                future.cancel()
        for task in suspects:
            yield task, self.alone(function, task)

    def alone(self, function: Callable[..., Any], task: Task) -> Any:
        """Returns function(*task), run with nothing beside it, or a WorkerKilledError as a value."""
        self._wait_for_worker()
        future = self._client.submit(
            _guarded, function, *task, key=f"{function.__name__}-{uuid.uuid4().hex}", pure=False
        )
        try:
            return _result(future)
        except KilledWorker:
            return WorkerKilledError()

    def _wait_for_worker(self) -> None:
        """Returns when there is a worker; adds one to a cluster of our own whose killed ones do not come back.

        Raises:
            BuildError: none comes.
        """
        with suppress(DaskTimeoutError):
            self._client.wait_for_workers(1, timeout=_PATIENCE)
            return
        if (cluster := self._client.cluster) is not None:
            cluster.scale(len(cluster.worker_spec) + 1)
            with suppress(DaskTimeoutError):
                self._client.wait_for_workers(1, timeout=_PATIENCE)
                return
        raise BuildError(f"no worker came back within {_PATIENCE} s; run the same command to go on")

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

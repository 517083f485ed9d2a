"""Clusters: workers of this machine, or a scheduler that somebody runs; how either fails is one line.

What is said between the processes of a cluster of our own is encrypted and authenticated (TLS, by a certificate that is
made for each cluster and lies in memory): a Dask worker runs what it is sent, and any user of a machine reaches its
ports.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import importlib.util
import logging
import re
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import dask
from distributed import Client, LocalCluster, Security, Worker, WorkerPlugin
from distributed import TimeoutError as DaskTimeoutError

from faceshards.errors import BuildError, ConfigError
from faceshards.progress import logging_at
from pipelines.stderr import held

log = logging.getLogger(__name__)

WAIT = 60  # seconds without a worker, at the start and in the middle, after which none is waited for
GO_ON = "run the same command to go on"
# What Dask raises when it is the cluster that failed (its CommClosedError is an OSError; so is its TimeoutError, from
# Python 3.11).
FAILURES = (
    *(OSError, RuntimeError, ValueError, DaskTimeoutError),
    *(asyncio.CancelledError, concurrent.futures.CancelledError),
)

# Dask gives some of its loggers a level of their own.
_TALKATIVE = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application", "asyncio")
# glibc returns every freed partition to the kernel, and Dask makes it more eager still; each then costs its page faults
# again, about a tenth of a worker's time. A worker keeps up to 256 MiB instead.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": 256 << 20,
    "MALLOC_MMAP_THRESHOLD_": 64 << 20,
    "MALLOC_TOP_PAD_": 64 << 20,
}


_GARBAGE = 100_000  # objects made before a worker looks for cycles among them


class ClusterError(BuildError):
    """Workers do not start, cannot be reached, or are lost."""


@dataclass(frozen=True)
class Tls:
    """The files by which a scheduler at tls:// and this process know each other; PEM.

    Args:
        ca: certificate of the authority that signed both.
        cert: of this process.
        key: of `cert`, without a password; None if it is in the same file.
    """

    ca: Path
    cert: Path
    key: Path | None = None

    def security(self) -> Security:
        """Returns what Dask is to use.

        Raises:
            ConfigError: names the file that cannot be read, or is not what it should be.
        """
        cert, key = str(self.cert), str(self.key or self.cert)
        try:
            for path in (self.ca, cert, key):  # OpenSSL would not say which
                with open(path, "rb"):
                    pass
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from None
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
        except ssl.SSLError:
            raise ConfigError(f"{self.ca}: holds no certificate (PEM)") from None
        try:
            context.load_cert_chain(cert, key, password=lambda: "")  # or OpenSSL asks the terminal, each time
        except (ssl.SSLError, ValueError) as error:
            reason = (getattr(error, "reason", None) or "no certificate, or no key").replace("_", " ").lower()
            raise ConfigError(f"{cert}: cannot be used with the key of {key} ({reason}; not with a password)") from None
        files = {"tls_ca_file": str(self.ca), "tls_client_cert": cert, "tls_client_key": key}
        return Security(require_encryption=True, **files)


class _Behave(WorkerPlugin):
    """What holds in the processes of a local cluster, which are ours as a whole."""

    def setup(self, worker: Worker) -> None:
        # Ctrl-C in a terminal reaches every process; it is for the build to answer, which then ends its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        settle()
        logging.getLogger("distributed").setLevel(logging.CRITICAL)


def settle() -> None:
    """Spares a process that does nothing but stages what it would spend beside them."""
    # Stages make lists of as many small objects as a partition has images, and no cycles: looking for some takes a
    # twentieth of a worker's time.
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    cv2.setNumThreads(1)  # there is a worker for each core


def check_dashboard() -> None:
    """Refuses a dashboard that cannot be served.

    Raises:
        BuildError: Bokeh, which draws it, is not installed.
    """
    if importlib.util.find_spec("bokeh") is None:
        raise BuildError("--dashboard needs bokeh, which is not installed: pip install 'faceshards[dashboard]'")


def name_of(scheduler: str | None) -> str:
    """Returns how a message calls a scheduler."""
    return f"scheduler {scheduler or 'of this machine'}"


@contextmanager
def connected(workers: int, scheduler: str | None, dashboard: bool, tls: Tls | None) -> Iterator[Client]:
    """Yields a client of a cluster that has a worker; Dask's settings and the logging are as they were afterwards.

    Args:
        workers: processes of a local cluster.
        scheduler: address of an existing scheduler, instead of a local cluster.
        dashboard: serve Dask's dashboard (local cluster).
        tls: how a scheduler at tls:// is known; None leaves it to Dask's own settings.

    Raises:
        ClusterError: the scheduler cannot be reached, or there is no worker.
        ConfigError: a file of `tls` is unusable.
    """
    # A task whose worker died is retried by the runner, alone; the profiler would cost 2 % of every worker, and looking
    # at the clock 50 times a second and at the system twice as much again, of every process.
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.profile.enabled": False,
        # A busy machine takes longer than Dask's 15 s to start a worker again, and the cluster would send it away.
        "distributed.deploy.lost-worker-timeout": "1 day",
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "1s" if dashboard else "10s",
        "distributed.nanny.pre-spawn-environ": {**dask.config.get("distributed.nanny.pre-spawn-environ"), **MALLOC},
    }
    security = tls.security() if tls else None
    with ExitStack() as stack:
        # They report every connection, and a death as a traceback of its own; what matters is said here.
        for logger in _TALKATIVE:
            stack.enter_context(logging_at(logger, logging.CRITICAL))
        stack.enter_context(dask.config.set(settings))  # until the end: workers that died are started again by it
        with _interrupt_afterwards():
            cluster = stack.enter_context(_local_cluster(workers, dashboard)) if scheduler is None else None
            client = stack.enter_context(_client(cluster, scheduler, security))
            if cluster is not None:
                with suppress(*FAILURES):  # of a worker that dies meanwhile; the one in its place has the plugin
                    client.register_plugin(_Behave())
        yield client


@contextmanager
def _client(cluster: LocalCluster | None, scheduler: str | None, security: Security | None) -> Iterator[Client]:
    where = name_of(scheduler)
    try:
        client = Client(cluster or scheduler, timeout=30, set_as_default=False, security=security)
    except TypeError:  # says that it lacks an SSL context
        raise ConfigError(
            f"{where}: needs certificates: --tls-ca, --tls-cert and --tls-key, or Dask's settings distributed.comm.tls"
        ) from None
    except FAILURES as error:
        raise ClusterError(f"{where}: {one_line(error)}") from None
    try:
        await_worker(client, where)
        yield client
    finally:
        with suppress(*FAILURES):  # of a scheduler that is gone
            client.close()


def await_worker(client: Client, where: str) -> None:
    """Returns when there is a worker; adds one to a cluster of our own whose killed ones do not come back.

    Args:
        client: of the cluster.
        where: the cluster is, for the message.

    Raises:
        ClusterError: none comes, or the scheduler is gone.
    """
    if _worker_comes(client, where):
        return
    if client.cluster is not None:  # of our own: its killed workers did not come back
        client.cluster.scale(len(client.cluster.worker_spec) + 1)
        if _worker_comes(client, where):
            return
    raise no_worker(where)


def _worker_comes(client: Client, where: str) -> bool:
    try:
        client.wait_for_workers(1, timeout=WAIT)
    except DaskTimeoutError:
        return False
    except FAILURES:
        raise lost(where) from None
    return True


def no_worker(where: str) -> ClusterError:
    """Returns what is said when no worker comes."""
    return ClusterError(f"{where}: no worker came within {WAIT} s; {GO_ON} once there is one")


def lost(where: str) -> ClusterError:
    """Returns what is said when a scheduler was there and is not any more."""
    return ClusterError(f"{where}: lost; {GO_ON} once there is one again")


@contextmanager
def _local_cluster(workers: int, dashboard: bool) -> Iterator[LocalCluster]:
    kept = None
    try:
        with held() as kept:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                security=True,
                dashboard_address="127.0.0.1:0" if dashboard else None,
                # Without a dashboard too the scheduler serves HTTP: on a fixed port, unless told otherwise, that a
                # second build would complain about.
                scheduler_kwargs={} if dashboard else {"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
            )
    except Exception as error:  # whatever a nanny met when its worker did not come up
        said = kept.text() if kept else ""
        log.info("what the workers said: %s", said)
        raise ClusterError(f"the workers did not start: {_cause(error, said)}; {GO_ON}") from None
    try:
        yield cluster
    finally:
        with suppress(Exception):  # it is confused by workers that died; what was to be done is done
            cluster.close()


def _cause(error: BaseException, said: str) -> str:
    """Returns why a worker did not start: what the system said, or the last error on its stderr."""
    root = error
    while (before := root.__cause__ or root.__context__) is not None:
        root = before
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    errors = re.findall(r"^[\w.]+(?:Error|Exception)\b.*$", said, re.MULTILINE)
    if errors or not isinstance(root, RuntimeError):
        return errors[-1] if errors else one_line(root)
    return "one was killed, or was out of memory"


def one_line(error: BaseException) -> str:
    """Returns what an exception says, or its name."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _interrupt_afterwards() -> Iterator[None]:
    """Has a Ctrl-C end what is inside at its end, so that no half of a cluster stays; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = signal.signal(signal.SIGINT, note) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:  # and if the workers did not start, it is because they had it, too
            raise KeyboardInterrupt

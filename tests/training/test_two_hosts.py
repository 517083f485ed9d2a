"""A run on two hosts, which are two network namespaces with a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.training.runs import await_end, finish, rank_handles, start, wait_for_step

pytestmark = pytest.mark.slow
ADDRESSES = ("10.55.77.1", "10.55.77.2")


def ip(*arguments: str) -> None:
    """Runs ip(8)."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def spaces():
    """Names of two network namespaces that reach each other."""
    if shutil.which("ip") is None:
        pytest.skip("no ip(8) here: it comes with iproute2")
    names = [f"faceshards-{os.getpid()}-{place}" for place in (0, 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    ip("-n", name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_when_the_cable_is_cut_both_end_and_say_so(spaces, data, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_NODE_TIMEOUT", "5")  # in place of 15 s, to have it over
    out = tmp_path / "run"
    options = ["--hosts", ",".join(ADDRESSES), "--port", "8118"]
    jobs = [
        start(data.path, out, *options, "--host-rank", str(place), inside=["ip", "netns", "exec", name], epochs=500)
        for place, name in enumerate(spaces)
    ]
    try:
        wait_for_step(jobs[0], out, 2)
        ranks = [handle for place in (0, 1) for handle in rank_handles(out / "logs" / f"host-{place}")]
        ip("-n", spaces[1], "link", "set", "eth0", "down")
        ends = [finish(job) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert len(ranks) == 2
    assert await_end(ranks, 0)
    for code, _, errors in ends:
        assert code == 1
        said = [line for line in errors.splitlines() if not line.startswith(("INFO ", "WARNING "))]
        assert said == [
            f"Error: host {ADDRESSES[1]} was lost: its rank 1 reaches the scheduler on {ADDRESSES[0]} no more; "
            "--resume goes on"
        ]

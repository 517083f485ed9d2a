"""What encryption between a build's processes costs: tasks a second by TLS, and in the clear.

Both ways the same runner, and workers that do next to nothing: what a build's own work costs comes on top, the same.
"""

from __future__ import annotations

import time

import click
from distributed import LocalCluster

from pipelines.runner import Runner


def answer(data: bytes, size: int) -> bytes:
    """Returns so many bytes."""
    return bytes(size)


@click.command()
@click.option("--tasks", default=1000, show_default=True)
@click.option("--bytes", "size", default=1000, show_default=True, help="Sent with a task, and returned by it.")
@click.option("--workers", default=2, show_default=True)
def main(tasks: int, size: int, workers: int) -> None:
    """Print seconds to start, and of all tasks."""
    run("tls", Runner(workers), tasks, size)
    local = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
    begin = time.perf_counter()
    with LocalCluster(n_workers=workers, **local) as cluster:
        started = time.perf_counter() - begin
        run("tcp", Runner(scheduler=cluster.scheduler_address), tasks, size, started)


def run(name: str, runner: Runner, tasks: int, size: int, started: float = 0.0) -> None:
    """Measures and prints one way.

    Args:
        name: of it.
        runner: not entered yet.
        tasks: how many.
        size: bytes of each, both ways.
        started: seconds that its cluster took before.
    """
    begin = time.perf_counter()
    with runner:
        up = time.perf_counter()
        count = sum(1 for _ in runner.map(answer, [(bytes(size), size)] * tasks))
        done = time.perf_counter()
    print(f"{name}: started in {started + up - begin:.2f} s; {count} tasks of {size} bytes in {done - up:.2f} s")


if __name__ == "__main__":
    main()

"""What it takes to look into a set: seconds and peak memory of each command, a process of its own each time; and of a
rank of training that opens its part.

    python -m benchmarks.bench_manifest [--images 1000000] [--folder /tmp]

The set is made by benchmarks.generate_manifest; its tables lie in the page cache, as they do after a first look.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.generate_manifest import generate
from faceshards.dataset.manifest import Manifest

# A command, and then the peak memory of its process: what a parent is told includes the parent's own.
RUN = """
import sys
from faceshards.cli.main import main
from faceshards.progress import peak_memory
try:
    main(sys.argv[1:])
finally:
    print(peak_memory(), file=sys.stderr)
"""

OPEN = """
import sys
from faceshards.dataset.manifest import Manifest
from faceshards.progress import peak_memory
from training.data.layout import Layout
from training.data.stream import Stream
data = Manifest(sys.argv[1])
Stream(data, Layout(data, int(sys.argv[2]), 1024), check_shards=False).close()
print(peak_memory(), file=sys.stderr)
"""


def commands(found: Manifest) -> list[list[str]]:
    """Returns the commands, each with the rows that it looks for among those of the middle."""
    part = found.table("images", shard=found.totals["shards"] // 2)
    row = part.slice(len(part) // 2, 1).to_pylist()[0]
    lost = found.table("dropped", ["sid"])["sid"]
    return [
        ["summary"],
        ["identities"],
        ["identities", "--sort", "images", "--limit", "20"],
        ["identities", "--drops", "5", "--sort", "dropped"],
        ["drops"],
        ["drops", "--reason", "undecodable"],
        ["drops", "--label", row["label_original"]],
        ["links"],
        ["conflicts", "--pairs"],
        ["shards"],
        ["image", str(row["sid"])],
        ["image", str(lost[len(lost) // 2])],
        ["image", row["sha256"].hex()[:16]],
        ["image", f"{row['source']}:{row['key']}"],
        ["image", "no-such-key"],
        ["query", "SELECT reason, count(*) FROM dropped GROUP BY reason ORDER BY 2 DESC"],
        ["query", "SELECT label, count(*) AS n, avg(bytes) FROM images GROUP BY label ORDER BY n DESC LIMIT 20"],
        ["query", "SELECT width, height, count(*) FROM images GROUP BY ALL ORDER BY 3 DESC LIMIT 10"],
    ]


def measure(code: str, *arguments: str) -> tuple[float, float, float]:
    """Returns wall seconds, CPU seconds and peak memory, in GiB, of a process of Python."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, int(done.stderr.split()[-1]) / (1 << 30)


@click.command()
@click.option("--images", default=1_000_000, show_default=True, help="Records scanned; WebFace42M has 42,474,557.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Where the set is made for a while.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="A set that is there, instead.")
@click.option("--other", type=click.Path(path_type=Path, file_okay=False), help="One more, to compare the first with.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each command; the fastest counts.")
@click.option("--only", default="", help="Rows with this in their name.")
def main(images: int, folder: Path | None, data: Path | None, other: Path | None, rounds: int, only: str) -> None:
    """Prints a row for each command, and one for a stream's rank."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if data is None:
            data = Path(temporary) / "set"
            generate(data, images, sources=2)
        found = Manifest(data)
        size = sum(entry["bytes"] for entry in found.info["files"].values())
        click.echo(f"{found.totals['scanned']:,} records, {size / 1e9:.2f} GB of tables")
        click.echo("| command | s | CPU s | peak GiB |\n|---|---|---|---|")
        processes = {
            " ".join(command): (RUN, "manifest", command[0], str(data), *command[1:]) for command in commands(found)
        }
        if other is not None:
            processes["diff"] = (RUN, "manifest", "diff", str(data), str(other))
        processes |= {f"a stream opens, rank 0 of {world}": (OPEN, str(data), str(world)) for world in (8, 1)}
        for name, process in processes.items():
            if only not in name:
                continue
            wall, cpu, memory = min(measure(*process) for _ in range(rounds))
            click.echo(f"| {name} | {wall:.2f} | {cpu:.2f} | {memory:.2f} |")


if __name__ == "__main__":
    main()

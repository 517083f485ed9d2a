"""The command ``faceshards train``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from evaluation.origin import MARK, NOTE, Origin
from faceshards.cli.command import Command, Interrupted, interruptible
from faceshards.cli.options import BYTES, PATH, data_root_option, json_option, settings_option, show
from faceshards.cli.paths import LOCATION, MODEL, LocalPath
from faceshards.cli.terminal import echo
from faceshards.storage.location import NEEDS_CACHE, Location, StoredPath

_RUN = LocalPath(
    "is in a bucket, and has to be on a disk here: files of a run are appended to and renamed; upload its folder "
    "afterwards"
)


class _Train(Command):
    """The command: a rank alone is interrupted as any, ranks of several get Ctrl-C from their launcher."""

    def run(self, ctx: click.Context) -> Any:
        """Runs it."""
        if ctx.params["devices"] == 1 and not ctx.params["hosts"] and "MS_ROLE" not in os.environ:
            ctx.with_resource(interruptible())
        return super().run(ctx)


@click.command(cls=_Train)
@click.argument("recipe")
@click.option("--data", type=LOCATION, help="A published dataset.  [required, --explain apart]")
@click.option("--out", type=_RUN, help="The run's folder: checkpoints, metrics, logs.  [likewise]")
@data_root_option
@settings_option
@click.option("--cache", type=PATH, help="A folder for copies of the shards that are read; a bucket's need one.")
@click.option("--cache-bytes", type=BYTES, default=0, help="That they may take, such as 200G; 0: no limit.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if there is one.")
@click.option("--finetune", type=MODEL, help="Start from the backbone of this checkpoint, .pth, .safetensors or .ckpt.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks on each host.")
@click.option("--hosts", help="All hosts of the job, by commas; the first runs the scheduler.")
@click.option("--host-rank", type=click.IntRange(min=0), default=0, show_default=True, help="This host in --hosts.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the scheduler; 0: a free one (one host).")
@click.option("--rank-table", type=PATH, help="Ascend's rank table file, for clusters that need one.")
@click.option("--dry-run", is_flag=True, help="Print the plan, look for all that the run needs, and stop.")
@click.option(
    "--explain", is_flag=True, help="Print each setting, where it comes from and whose figure it is, and stop."
)
@json_option
def train(
    recipe: str,
    data: Location | None,
    out: Path | None,
    data_root: Path,
    settings: dict[str, Any],
    cache: Path | None,
    cache_bytes: int,
    resume: bool,
    finetune: Path | None,
    devices: int,
    hosts: str | None,
    host_rank: int,
    port: int,
    rank_table: Path | None,
    dry_run: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """Train by RECIPE on the dataset at --data.

    RECIPE is a name that comes with faceshards, or a YAML file.

    \b
    Examples:
      faceshards train synthetic --data data/shards/synthetic --out data/runs/synthetic
      faceshards train glint360k --data /ssd/glint360k --out runs/r100 --set backbone=r100 --devices 8
      faceshards train ms1mv3 --set backbone=mbf --explain
      faceshards train webface42m --data /mnt/wf42m --out /mnt/runs/b --set backbone=vit_b --dry-run
      faceshards train ms1mv3 --data s3://faces/ms1mv3 --out runs/s --cache /ssd --cache-bytes 9G --set order=window
      faceshards train ms1mv3 --data /mnt/ms1mv3 --out /mnt/c --devices 8 --hosts n0,n1 --host-rank 1 --port 8118
    """
    from training import ranks
    from training.device.diagnostics import quieten

    ranks.join()
    quieten()
    from training import run  # MindSpore takes seconds

    if explain:
        found = run.Request(recipe, settings, data or Path(), out or Path(), resume and bool(out)).resolved()
        show(found.to_json(), found.lines(), as_json)
        return
    if data is None or out is None:
        raise click.MissingParameter(param_hint="'--out'" if data else "'--data'", param_type="option")
    if cache_bytes and cache is None:
        raise click.UsageError("--cache-bytes belongs to --cache")
    if isinstance(data, StoredPath) and cache is None:
        raise click.UsageError(f"--data {data}: {NEEDS_CACHE}")
    request = run.Request(recipe, settings, data, out, resume, finetune, data_root, cache, cache_bytes)
    request.resolved()  # refuses what is wrong usage before it looks at files
    if run.job_role() is not None:
        run.run_role(request, _verifier)
        return
    names = tuple(name.strip() for name in hosts.split(",")) if hosts else ()
    if host_rank >= max(1, len(names)):
        raise click.UsageError(f"--host-rank {host_rank}: --hosts has {len(names)}")
    where = run.Hosts(devices, names, host_rank, port, rank_table)
    if dry_run:
        plan = run.dry_run(request, where, _verifier, (lambda line: None) if as_json else echo)
        show(plan, [], as_json)
        return
    try:
        result = run.run(request, where, _verifier)
    except KeyboardInterrupt:
        raise Interrupted(_go_on(out)) from None
    show_result(result, as_json)


def _go_on(out: Path) -> str:
    """Returns how to go on with a run that was interrupted."""
    from training.checkpoint import known

    if found := known(out / "checkpoints")[-1:]:
        return f"with --resume the command goes on from {found[0]}"
    return "before the first checkpoint: the command begins again"


def _verifier(paths: Sequence[Path]) -> Any:
    """Returns what measures a backbone while it trains: evaluation's, which training does not know."""
    from evaluation.during import Verifier

    return Verifier(paths)


def show_result(result: dict[str, Any], as_json: bool) -> None:
    """Prints what came of a run: as JSON, or as lines."""
    if as_json:
        echo(json.dumps(result, indent=1))
        return
    skipped = result.get("skipped_steps", 0)  # an older run's result has none
    steps = f"steps {result['steps']:,}" + (f" ({skipped:,} skipped: too large for float16)" if skipped else "")
    echo(f"{steps}  loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}")
    for line in (*_accuracies(result), f"checkpoint {result['checkpoint']}"):
        echo(line)
    if "versions" in result:  # results of releases before have none
        origin = Origin("", "", dataset=result["dataset"], fingerprint=result["fingerprint"], stamp=result)
        for line in origin.lines()[1:]:
            echo(line)


def _accuracies(result: dict[str, Any]) -> Iterator[str]:
    """Yields the accuracies of the last checkpoint and, if it is another, of the best, which its sets chose."""
    best, raw = result.get("best_accuracies", {}), result.get("raw_pixels", {})
    last_is_best = bool(best) and result["best"] == result["checkpoint"]
    for name, value in result["accuracies"].items():
        pixels = f" (raw pixels {raw[name]:.2%})" if name in raw else ""
        which = "the last checkpoint" + (", which is the best" if last_is_best else "")
        yield f"{name}{MARK * last_is_best}: accuracy {value:.2%} at step {result['steps']:,}, {which}{pixels}"
    if best and not last_is_best:
        for name, value in best.items():
            yield f"{name}{MARK}: accuracy {value:.2%} at step {result['best_steps']:,}, the best, which eval takes"
        yield f"best {result['best']}"
    if best:
        yield NOTE

"""The command ``faceshards train``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from faceshards.cli.options import PATH, Command, data_root_option, json_option, settings_option


@click.command(cls=Command, go_on="; with --resume the command goes on from the last checkpoint")
@click.argument("recipe")
@click.option("--data", required=True, type=PATH, help="A published dataset.")
@click.option("--out", required=True, type=PATH, help="The run's folder: checkpoints, metrics, logs.")
@data_root_option
@settings_option
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if there is one.")
@click.option("--finetune", type=PATH, help="Start from the backbone of this checkpoint, .pth, .safetensors or .ckpt.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks on each host.")
@click.option("--hosts", help="All hosts of the job, by commas; the first runs the scheduler.")
@click.option("--host-rank", type=click.IntRange(min=0), default=0, show_default=True, help="This host in --hosts.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the scheduler; 0: a free one (one host).")
@click.option("--rank-table", type=PATH, help="Ascend's rank table file, for clusters that need one.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@json_option
def train(
    recipe: str,
    data: Path,
    out: Path,
    data_root: Path,
    settings: dict[str, Any],
    resume: bool,
    finetune: Path | None,
    devices: int,
    hosts: str | None,
    host_rank: int,
    port: int,
    rank_table: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train by RECIPE (a name that comes with faceshards, or a YAML file) on the dataset at --data.

    \b
    Examples:
      faceshards train synthetic --data data/shards/synthetic --out data/runs/synthetic
      faceshards train glint360k --data /ssd/glint360k --out runs/r100 --set backbone=r100 --devices 8
      faceshards train webface42m --data /mnt/wf42m --out /mnt/runs/b --set backbone=vit_b --dry-run
      faceshards train ms1mv3 --data /mnt/ms1mv3 --out /mnt/c --devices 8 --hosts n0,n1 --host-rank 1 --port 8118
    """
    from training import run  # MindSpore takes seconds

    request = run.Request(recipe, settings, data, out, resume, finetune, data_root)
    if run.job_role() is not None:
        run.run_role(request, _verifier)
        return
    names = tuple(name.strip() for name in hosts.split(",")) if hosts else ()
    if host_rank >= max(1, len(names)):
        raise click.UsageError(f"--host-rank {host_rank}: --hosts has {len(names)}")
    where = run.Hosts(devices, names, host_rank, port, rank_table)
    if dry_run:
        for line in run.plan_run(request, where).lines():
            click.echo(line)
        return
    _print(run.run(request, where, _verifier), as_json)


def _verifier(paths: Sequence[Path]) -> Any:
    """Returns what measures a backbone while it trains: evaluation's, which training does not know."""
    from evaluation.during import Verifier

    return Verifier(paths)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    skipped = result.get("skipped_steps", 0)  # an older run's result has none
    steps = f"steps {result['steps']:,}" + (f" ({skipped:,} skipped: too large for float16)" if skipped else "")
    click.echo(f"{steps}  loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}")
    for name, value in result["accuracies"].items():
        raw = result.get("raw_pixels", {}).get(name)
        click.echo(f"{name}: accuracy {value:.2%}" + (f" (raw pixels {raw:.2%})" if raw is not None else ""))
    click.echo(f"checkpoint {result['checkpoint']}")

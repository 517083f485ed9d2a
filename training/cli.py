"""The command ``faceshards train``: plans a run, starts its ranks, and says what came of it."""

from __future__ import annotations

import json
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from pipelines.cli_common import exclusive_folder, settings_option
from pipelines.errors import FaceshardsError
from pipelines.manifest import Manifest
from pipelines.shards import write_json

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("recipe")
@click.option("--data", required=True, type=_PATH, help="A published dataset.")
@click.option("--out", required=True, type=_PATH, help="The run's folder: checkpoints, metrics, logs.")
@settings_option
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if there is one.")
@click.option("--finetune", type=_PATH, help="Start from the backbone of this checkpoint, .pth, .safetensors or .ckpt.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks on each host.")
@click.option("--hosts", help="All hosts of the job, by commas; the first runs the scheduler.")
@click.option("--host-rank", type=click.IntRange(min=0), default=0, show_default=True, help="This host in --hosts.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the scheduler; 0: a free one (one host).")
@click.option("--rank-table", type=_PATH, help="Ascend's rank table file, for clusters that need one.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(
    recipe: str,
    data: Path,
    out: Path,
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
    """Train by RECIPE (a name in configs/train or a YAML file) on the dataset at --data.

    \b
    Examples:
      faceshards train synthetic --data data/shards/synthetic --out data/runs/synthetic
      faceshards train glint360k --data /ssd/glint360k --out runs/r100 --set backbone=r100 --devices 8
      faceshards train webface42m --data /mnt/wf42m --out /mnt/runs/b --set backbone=vit_b --dry-run
      faceshards train ms1mv3 --data /mnt/ms1mv3 --out /mnt/c --devices 8 --hosts n0,n1 --host-rank 1 --port 8118
    """
    role = os.environ.get("MS_ROLE")  # set by msrun
    if role is not None:
        _rank(role, recipe, data, out, settings, resume, finetune)
        return
    from training.config import load_recipe
    from training.launch import launch
    from training.plan import make_plan

    names = [name.strip() for name in hosts.split(",")] if hosts else []
    if host_rank >= max(1, len(names)):
        raise click.UsageError(f"--host-rank {host_rank}: --hosts has {len(names)}")
    config = load_recipe(recipe, settings)
    plan = make_plan(config, Manifest(data), devices * max(1, len(names)))
    if dry_run:
        for line in plan.lines():
            click.echo(line)
        return
    result = _finished(out, plan) if resume else None
    if result is not None:
        logging.getLogger("training").warning("%s: finished already; this is its result", out)
        _print(result, as_json)
        return
    if not resume and any(out.glob("checkpoints/step-*")):
        raise FaceshardsError(f"{out}: holds a run already: --resume goes on with it, or choose another --out")
    with exclusive_folder(out, f".lock-{host_rank}"):
        if plan.world == 1:
            result = _run(config, data, out, resume, finetune)
        else:
            arguments = [recipe, "--data", str(data), "--out", str(out), *(["--resume"] if resume else [])]
            arguments += ["--finetune", str(finetune)] if finetune else []
            for key, value in settings.items():
                arguments += ["--set", f"{key}={json.dumps(value)}"]
            logs = out / "logs" / (f"host-{host_rank}" if len(names) > 1 else "")
            launch(arguments, logs, devices, names, host_rank, port, rank_table)
            result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    _print(result, as_json)


def _rank(
    role: str, recipe: str, data: Path, out: Path, settings: dict[str, Any], resume: bool, finetune: Path | None
) -> None:
    """Is one rank, or the scheduler, of a job that msrun started."""
    from training.config import load_recipe
    from training.launch import announce

    config = load_recipe(recipe, settings)
    if role == "MS_SCHED":
        from training.distributed import init

        init(config.device)
        return
    announce()
    _run(config, data, out, resume, finetune)


def _run(config: Any, data: Path, out: Path, resume: bool, finetune: Path | None) -> dict[str, Any]:
    """Returns the result of a run in this process, which is one of its ranks."""
    from training.distributed import init
    from training.loop import train as run
    from training.plan import make_plan

    logging.getLogger("training").setLevel(logging.INFO)
    group = init(config.device)
    manifest = Manifest(data)
    plan = make_plan(config, manifest, group.world)
    verify = None
    if config.verify and group.rank == 0:
        from evaluation.during import Verifier  # MindSpore and scikit-learn: only for runs that verify

        verify = Verifier([Path(path) for path in config.verify])
    # The launcher holds the folder; a rank holds its part of it, since it may outlive a launcher that was killed.
    with exclusive_folder(out, f".lock-rank-{group.rank}") if group.world > 1 else nullcontext():
        result = run(plan, manifest, out, group, resume=resume, finetune=finetune, verify=verify)
        if verify is not None:
            result["raw_pixels"] = verify.raw_pixels
        if group.rank == 0:
            write_json(result, out / "result.json")
    group.finish()
    return result


def _finished(out: Path, plan: Any) -> dict[str, Any] | None:
    """Returns the result of a run that has done all its steps, by these settings and on this dataset."""
    from training.checkpoint import read_meta

    try:
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        path = Path(result["checkpoint"])
        if result["steps"] != plan.steps or not path.is_dir():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    meta = read_meta(path)
    plan.check_same(path, meta.fingerprint, meta.config)
    return dict(result)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    click.echo(f"steps {result['steps']:,}  loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}")
    for name, value in result["accuracies"].items():
        raw = result.get("raw_pixels", {}).get(name)
        click.echo(f"{name}: accuracy {value:.2%}" + (f" (raw pixels {raw:.2%})" if raw is not None else ""))
    click.echo(f"checkpoint {result['checkpoint']}")

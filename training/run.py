"""A run from the outside: whether it has ended already, one rank of it in this process, or all of them on this host."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.errors import ConfigError, FaceshardsError
from faceshards.files import bytes_text, write_json
from faceshards.formats.json_files import read_json
from faceshards.locks import exclusive_folder, holder_of
from faceshards.progress import logging_at
from faceshards.settings import make_config
from faceshards.storage.location import Location
from faceshards.versions import stamp
from training import preflight
from training.backbones.registry import BACKBONES, find_spec
from training.config import TrainConfig, find_recipe, verification_sets
from training.data.shard_cache import ShardCache
from training.device.diagnostics import diagnostics_in, reported_in
from training.device.distributed import choose_device, init
from training.head.margins.registry import make_margin
from training.hosts import Hosts, LaunchError
from training.launch import launch
from training.plan import Plan, make_plan
from training.ranks import LOGS, last_words
from training.recipes import Resolved, read_recipe, resolve

log = logging.getLogger(__name__)

_RANK_LOCK = ".lock-rank-"  # and the rank's number

MakeVerifier = Callable[[Sequence[Path]], Any]  # of verification sets; see training.loop.Verify


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Args:
        recipe: name or file.
        settings: plain values laid over it.
        data: the dataset's folder, or its address in a bucket.
        out: the run's folder.
        resume: go on from the last checkpoint in `out`.
        finetune: checkpoint or weights to start the backbone from.
        data_root: where the known sets lie; see training.config.verification_sets.
        cache: a folder of this host for copies of the shards that are read; None reads them where they are.
        cache_bytes: that they may take; 0: no limit.
    """

    recipe: str
    settings: dict[str, Any]
    data: Location
    out: Path
    resume: bool = False
    finetune: Path | None = None
    data_root: Path = Path("data/raw")
    cache: Path | None = None
    cache_bytes: int = 0

    def shard_cache(self) -> ShardCache | None:
        """Returns what keeps copies of shards, None if they are read where they are."""
        return ShardCache(self.cache, self.cache_bytes) if self.cache else None

    def config(self) -> TrainConfig:
        """Returns the settings of the run on this host, its device chosen."""
        return _here(self.resolved())

    def resolved(self) -> Resolved[TrainConfig]:
        """Returns the settings of the run and where they come from.

        Where recipe and settings are silent, a run that goes on keeps what it began with, whatever today's defaults.

        Raises:
            ConfigError: see training.recipes.resolve; or an entry for a backbone that there is not.
            CheckpointError: the last checkpoint of the run is damaged.
        """
        recipe = read_recipe(find_recipe(self.recipe))
        for name in recipe.backbones:
            if name not in BACKBONES:
                raise ConfigError(f"{recipe.path}: backbones: '{name}' is not one of {', '.join(BACKBONES)}")
        found = resolve(recipe, self.settings, _begun(self.out) if self.resume else TrainConfig())
        find_spec(found.config.backbone)  # refuses an unknown one
        make_margin(found.config)  # likewise, and numbers it cannot have
        return found

    def arguments(self) -> list[str]:
        """Returns the arguments of ``faceshards train`` for a rank."""
        found = [self.recipe, "--data", str(self.data), "--out", str(self.out), "--data-root", str(self.data_root)]
        found += ["--resume"] if self.resume else []
        found += ["--finetune", str(self.finetune)] if self.finetune else []
        found += ["--cache", str(self.cache), "--cache-bytes", str(self.cache_bytes)] if self.cache else []
        for key, value in self.settings.items():
            found += ["--set", f"{key}={json.dumps(value)}"]
        return found


def _here(found: Resolved[TrainConfig]) -> TrainConfig:
    """Returns settings for this host: device auto becomes one of its devices."""
    return replace(found.config, device=choose_device(found.config.device))


def _begun(out: Path) -> TrainConfig:
    """Returns the settings that the run in `out` began with and must keep; the defaults if it has no checkpoint."""
    from training.checkpoint import known, read_meta

    for path in known(out / "checkpoints")[-1:]:
        settings = read_meta(path).config
        amp = settings.get("amp", TrainConfig.amp)
        names = [name for name in vars(TrainConfig()) if name in settings and Plan.binds(name, amp)]
        return make_config({name: settings[name] for name in names}, str(path), TrainConfig())
    return TrainConfig()


def _plan(request: Request, data: Manifest, hosts: Hosts) -> Plan:
    """Returns the plan of a run; warns of what it keeps from its begin."""
    found = request.resolved()
    kept = [f"{name} {getattr(found.config, name)}" for name, origin in found.origins.items() if origin == "checkpoint"]
    if kept:
        log.warning("%s: goes on with %s, as it began; the defaults are others", request.out, ", ".join(kept))
    return make_plan(_here(found), data, hosts.world)


def dry_run(
    request: Request, hosts: Hosts, make_verifier: MakeVerifier, say: Callable[[str], object]
) -> dict[str, Any]:
    """Returns what a run would do, and says it line by line; then looks for all it needs. Nothing is made.

    Raises:
        FaceshardsError: as run() would before it makes anything.
    """
    data = Manifest(request.data)
    plan = _plan(request, data, hosts)
    data.check_table("images")  # before a line is said of it
    for line in plan.lines(request.cache is not None):
        say(line)
    if request.cache:
        need = plan.layout.bytes_at_once(hosts.ranks, plan.window)
        say(f"cache {request.cache}: this host's ranks read up to {bytes_text(need)} of shards at once")
    verifier = _checked(request, plan, data, hosts, make_verifier)
    sets = list(verifier.lines()) if verifier is not None else []
    for line in (*sets, "all that the run needs is there"):
        say(line)
    return {**plan.to_json(), "dataset": data.info["name"], "verification": sets}


def _checked(request: Request, plan: Plan, data: Manifest, hosts: Hosts, make_verifier: MakeVerifier) -> Any:
    """Returns the verifier of a run that has all it needs here, None without one; warns of what may not be meant."""
    for doubt in plan.doubts():
        log.warning("%s", doubt)
    cache = request.shard_cache()
    preflight.check(plan, data, hosts, request.out, resume=request.resume, start=request.finetune, cache=cache)
    data.check_table("images")  # once on each host; a rank then looks at the parts of its own shards only
    if not plan.config.verify or hosts.rank:  # the first rank verifies
        return None
    try:
        return make_verifier(verification_sets(plan.config, request.data_root))
    except FaceshardsError as error:
        raise FaceshardsError(f"verify: {error}") from None


def run(request: Request, hosts: Hosts, make_verifier: MakeVerifier) -> dict[str, Any]:
    """Returns the result of a run: of one that has ended already, or after all its ranks have ended well.

    Raises:
        FaceshardsError: `out` holds another run, or one that is not to go on; a rank ended early.
    """
    data, out = Manifest(request.data), request.out
    plan = _plan(request, data, hosts)
    result = _finished(out, plan) if request.resume else None
    if result is not None:
        log.warning("%s: finished already; this is its result", out)
        return _located(result, out)
    verifier = _checked(request, plan, data, hosts, make_verifier)
    logs = out / "logs" / (f"host-{hosts.rank}" if len(hosts.names) > 1 else "")
    before = {out, *out.parents, *out.rglob("*")} if out.exists() else {path for path in out.parents if path.exists()}
    with exclusive_folder(out, f".lock-{hosts.rank}"), _no_traces(out, before), diagnostics_in(logs):
        _alone(out)
        if plan.world == 1:
            with reported_in(logs):
                return _located(run_rank(request, data, lambda _: verifier), out)
        verifier = None  # rank 0 reads its sets for itself
        launch(request.arguments(), logs, hosts)
        return _located(read_json(out / "result.json"), out)


def _alone(out: Path) -> None:
    """Refuses a run whose ranks of an earlier start live on: where a host has lost another, or its launcher."""
    for path in sorted(out.glob(f"{_RANK_LOCK}*")):  # ours have none before all hosts' are there
        if holder := holder_of(path):
            rank = path.name.removeprefix(_RANK_LOCK)
            raise LaunchError(
                f"{out}: rank {rank} of an earlier start (process {holder} of its host) is at work there still; wait "
                "until it has ended, or end it"
            )


@contextmanager
def _no_traces(out: Path, before: Container[Path]) -> Iterator[None]:
    """Removes, should the work inside fail before it wrote a file, the folders and lock files that were made for it.

    Args:
        out: the run's folder, which this process has to itself.
        before: what of it, and above it, was there before.
    """
    try:
        yield
    except BaseException:
        left = [path for path in (*out.rglob("*"), out, *out.parents) if path not in before]
        if all(path.is_dir() or path.name.startswith(".lock-") for path in left):
            with suppress(OSError):  # what failed is what matters
                for path in sorted(left, reverse=True):  # what a folder holds comes before the folder
                    path.rmdir() if path.is_dir() else path.unlink()
        raise


def _located(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Returns a result with its paths as seen from here; result.json has them from the run's folder on."""
    return result | {name: str(out / result[name]) for name in ("checkpoint", "best") if result[name]}


def job_role() -> str | None:
    """Returns what msrun started this process as, MS_SCHED or MS_WORKER; None if it did not."""
    return os.environ.get("MS_ROLE")


def run_role(request: Request, make_verifier: MakeVerifier) -> None:
    """Is the scheduler or one rank of a job that msrun started."""
    with last_words(), reported_in(Path(os.environ.get(LOGS, request.out / "logs"))):
        if job_role() == "MS_SCHED":
            init(request.config().device)
            return
        # What is to be said of the dataset and the verification sets, the launcher has said.
        with logging_at("faceshards.dataset", logging.ERROR), logging_at("evaluation", logging.ERROR):
            run_rank(request, Manifest(request.data), make_verifier)


def run_rank(request: Request, data: Manifest, make_verifier: MakeVerifier) -> dict[str, Any]:
    """Returns the result of a run in this process, which is one of its ranks."""
    from training.loop import train

    config, out = request.config(), request.out
    group = init(config.device)
    plan = make_plan(config, data, group.world)
    verifier = None
    if config.verify and group.rank == 0:
        verifier = make_verifier(verification_sets(config, request.data_root))
    # The launcher holds the folder; a rank holds its part of it, since it may outlive a launcher that was killed.
    own = exclusive_folder(out, f"{_RANK_LOCK}{group.rank}") if group.world > 1 else nullcontext()
    with own, logging_at("training", logging.INFO):
        result = train(
            *(plan, data, out, group),
            resume=request.resume,
            finetune=request.finetune,
            verify=verifier,
            cache=request.shard_cache(),
        )
        if verifier is not None:
            result["raw_pixels"] = verifier.raw_pixels
        result |= {"dataset": data.info["name"], "fingerprint": data.fingerprint, **stamp()}
        if group.rank == 0:
            write_json(result, out / "result.json")
    group.barrier()  # a rank leaves only when all are done: the last AllReduce of one fails when another exits first
    return result


def _finished(out: Path, plan: Plan) -> dict[str, Any] | None:
    """Returns the result of a run that has done all its steps, by these settings and on this dataset."""
    from training.checkpoint import read_meta

    try:
        result = read_json(out / "result.json")
        path = out / result["checkpoint"]
        if result["steps"] != plan.steps or not path.is_dir():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    meta = read_meta(path)
    plan.check_same(path, meta.fingerprint, meta.config)
    return dict(result)

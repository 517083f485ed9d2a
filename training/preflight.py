"""What a run needs of this machine: looked for before anything is made, by --dry-run as by the run itself.

What follows from settings and manifest alone, the plan refuses (plan.py).
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow.dataset as ds

from faceshards.checksums import size_difference
from faceshards.dataset.manifest import Manifest
from faceshards.errors import ConfigError, FaceshardsError
from faceshards.files import bytes_text, check_writable, writable_at
from training import checkpoint
from training.backbones.registry import create_backbone
from training.centers.host import HEADROOM
from training.checkpoint import CheckpointError
from training.config import TrainConfig
from training.data.layout import StreamError
from training.data.shard_cache import ShardCache
from training.data.transforms import SIZE
from training.device.distributed import check_device
from training.hosts import Hosts
from training.loggers.registry import LOGGERS, check_loggers
from training.plan import Plan
from training.weights.assign import load_weights

log = logging.getLogger(__name__)

FOLDERS = ("checkpoints", "centers", "logs", *LOGGERS)  # below a run's own, if they are there already
_ASKED = 8  # shards at once
SPARE_FILES = 128  # that a rank has open beside its shards: libraries, logs, sockets


def check(
    plan: Plan,
    data: Manifest,
    hosts: Hosts,
    out: Path,
    *,
    resume: bool,
    start: Path | None,
    cache: ShardCache | None = None,
) -> None:
    """Refuses a run that would fail later for something that can be seen now, and warns of what may be too little.

    Args:
        plan: of the run.
        data: its dataset.
        hosts: where its ranks are; looked at are those of this host.
        out: the run's folder, which need not be there.
        resume: it goes on from its last checkpoint, if there is one.
        start: a checkpoint or a file of weights whose backbone is taken over.
        cache: keeps copies of the shards that this host's ranks read.

    Raises:
        FaceshardsError: one line with the setting or file, the cause, and what to do.
    """
    check_device(plan.config.device, hosts.devices)
    hosts.check()
    check_loggers(plan.config.loggers)
    known = checkpoint.known(out / "checkpoints")
    if known and not resume:
        raise FaceshardsError(f"{out}: holds a run already: --resume goes on with it, or choose another --out")
    if known:
        meta = checkpoint.read_meta(known[-1])
        plan.check_same(known[-1], meta.fingerprint, meta.config)
    elif start is not None:
        _check_start(start, plan.config)
    for folder in (out, *(out / name for name in FOLDERS if (out / name).exists())):
        check_writable(folder)
    _check_sizes(data)
    if cache is not None:
        cache.check(plan.layout.bytes_at_once(hosts.ranks, plan.window), plan.layout.bytes_read(hosts.ranks))
    _check_shards(plan, data, hosts)
    _check_room(plan, out)
    _weigh(plan, hosts)


def _check_start(start: Path, config: TrainConfig) -> None:
    """Refuses a checkpoint or a file of weights that is damaged, or of another backbone."""
    if start.is_file():
        load_weights(start, create_backbone(config.backbone, config.embedding_size))
        return
    if not start.exists():
        raise CheckpointError(
            f"--finetune: {start}: no checkpoint there, and no file of weights (no such file or folder)"
        )
    found = checkpoint.read_meta(start).config
    theirs, ours = ((source["backbone"], source["embedding_size"]) for source in (found, vars(config)))
    if theirs != ours:
        raise CheckpointError(
            f"{start}: of another model: {theirs[0]} with {theirs[1]} components (backbone, embedding_size), this run "
            f"has {ours[0]} with {ours[1]}"
        )


def _check_sizes(data: Manifest) -> None:
    """Refuses a dataset with images of another size than the backbones take."""
    other = (ds.field("height") != SIZE[0]) | (ds.field("width") != SIZE[1])
    found = data.table("images", ["height", "width", "key"], other)
    if not found.num_rows:
        return
    counted = found.group_by(["height", "width"]).aggregate([([], "count_all")]).sort_by([("count_all", "descending")])
    sizes = [f"{row['height']} x {row['width']}: {row['count_all']:,}" for row in counted.slice(0, 3).to_pylist()]
    more = f", and {counted.num_rows - 3:,} other sizes" if counted.num_rows > 3 else ""
    wanted = f"{SIZE[0]} x {SIZE[1]}"
    remedy = "resize the pictures and build again"
    if found.num_rows < data.totals["kept"]:
        remedy += f", or leave these out with build --set image_size=[{SIZE[0]},{SIZE[1]}]"
    raise ConfigError(
        f"{data.path}: {found.num_rows:,} of {data.totals['kept']:,} images are not of {wanted} pixels, which the "
        f"backbones take ({', '.join(sizes)}{more}; the first: {found['key'][0]}): {remedy}"
    )


def _check_shards(plan: Plan, data: Manifest, hosts: Hosts) -> None:
    """Refuses shards of this host's ranks that lack or are cut, and more of them than a process may open."""
    layout, soft = plan.layout, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for rank in hosts.ranks:
        files = layout.files(rank)
        if len(files) + SPARE_FILES > soft != resource.RLIM_INFINITY:
            raise FaceshardsError(
                f"{data.path}: rank {rank} reads {len(files):,} shards, a process may open {soft:,} files here: raise "
                f"it with ulimit -n {len(files) + SPARE_FILES}, or choose more --devices"
            )
        paths = [data.shard_path(layout.names[number]) for number in files]
        sizes = [layout.bytes[number] for number in files]
        with ThreadPoolExecutor(_ASKED) as pool:  # a store takes its time for each
            for problem in pool.map(partial(size_difference, where="the manifest"), paths, sizes):
                if problem:
                    raise StreamError(problem)


def _check_room(plan: Plan, out: Path) -> None:
    """Refuses a disk without room for the checkpoints that lie there at once, and for class centres kept on it."""
    place = writable_at(out)
    files = (out / "checkpoints").glob("*/*")
    have = sum(path.stat().st_size for path in files)
    need = max(0, plan.checkpoints * plan.checkpoint_bytes - have)
    text = f"{plan.checkpoints:,} checkpoints of {bytes_text(plan.checkpoint_bytes)} at once (keep={plan.config.keep})"
    if plan.config.centers == "disk":
        centers = sum(plan.touched(rank) for rank in range(plan.world)) * plan.row_bytes
        need, text = need + centers + HEADROOM, f"{text} and {bytes_text(centers)} of class centres (centers=disk)"
    free = shutil.disk_usage(place).free
    if free < need:
        raise FaceshardsError(
            f"{out}: {bytes_text(free)} free, the run needs {bytes_text(need)}: {text}; make room, or "
            f"choose another --out"
        )


def _weigh(plan: Plan, hosts: Hosts) -> None:
    """Warns of more ranks than processors, and of class centres that fill this host's memory."""
    config, cores, memory = plan.config, len(os.sched_getaffinity(0)), _memory()
    if config.device == "CPU" and hosts.devices > cores:
        log.warning("--devices %d: this host has %d processors; the ranks take turns", hosts.devices, cores)
    need = sum(plan.step_bytes(rank) for rank in hosts.ranks)
    if config.centers == "memory":
        need += sum(plan.slices[rank][1] for rank in hosts.ranks) * plan.row_bytes
    if config.centers != "device" and need > memory:
        log.warning(
            "centers: %s: the class centres of this host's ranks and a step of them take up to %s, the host has %s of "
            "memory: centers=disk, more --hosts or a smaller sample_rate takes less",
            *(config.centers, bytes_text(need), bytes_text(memory)),
        )


def _memory() -> int:
    """Returns the bytes of memory of this host, or what its control group leaves of them."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such group, or "max"
            found = min(found, int(Path(limit).read_text()))
    return found

"""What decides a training run: frozen, strict, and written into every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faceshards.errors import ConfigError
from faceshards.settings import CONFIGS, check_ranges, check_settings, choices_of, one_of, within
from faceshards.storage.faults import StorageError
from faceshards.storage.location import StoredPath, as_location
from training.recipes import read_recipe, resolve

RECIPES = CONFIGS / "train"

WINDOW = 2
"""Shards of a window, unless a setting says otherwise."""


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run. Image and identity counts are the manifest's; ranks and hosts are the launcher's.

    Args:
        backbone: a name of training.backbones.registry.BACKBONES.
        embedding_size: components of an embedding.
        drop_path: of a ViT: probability that an image skips a branch of the last block in training, growing linearly
            from 0 at the first.
        mask_ratio: of a ViT: part of its tokens that an image hides in training.
        recompute: computes activations again in the backward pass instead of keeping them.
        sync_bn: batch norm over the images of all ranks, whose number then changes the losses by rounding alone. The
            reference normalises each rank's images apart.
        margin: [m1, m2, m3] of the combined margin: [1, 0.5, 0] is ArcFace, [1, 0, 0.4] CosFace; or a name of
            training.head.margins.registry.MARGINS, as ``adaface``, alone or with numbers of its own:
            {name: adaface, m: 0.4, h: 0.333}.
        scale: s, the factor of the cosines before the softmax.
        interclass_threshold: negatives with a cosine above this get logit 0 (label noise); 0 turns it off.
        sample_rate: part of a rank's class centres that takes part in a step (Partial FC); 1 takes all.
        centers: where a rank keeps its class centres: ``memory``, ``disk`` (memory-mapped) or ``device``.
        optimizer: ``sgd`` with momentum, or ``adamw``.
        lr: highest learning rate, at a global batch of `lr_batch` images.
        lr_batch: the learning rate is lr * global_batch / lr_batch (linear scaling, arXiv 1706.02677); 0: as it is.
        momentum: of SGD.
        weight_decay: of backbone and class centres.
        schedule: ``polynomial`` decay to 0, ``multistep`` or ``cosine`` decay to 0.
        power: of the polynomial; 1, as arcface_torch trains, is a straight line.
        milestones: epochs at which multistep multiplies the learning rate by `gamma`.
        gamma: see milestones.
        warmup_epochs: epochs in which the learning rate grows linearly from 0.
        epochs: passes over the images.
        global_batch: images of an optimiser's step over all ranks; a rank takes its equal part.
        accumulate: parts in which a rank computes its images of a step, one after the other.
        clip: largest L2 norm of the backbone's gradient; 0 turns clipping off.
        amp: mixed precision level of mindspore.amp; O0 is float32, O2 computes the backbone in float16 but for its
            norms, O3 all of it. Weights, head, class centres and optimiser are float32 at every level.
        loss_scale: factor of the backbone's gradients in mixed precision; 0 finds it as it goes (dynamic).
        sampling: each image once an epoch (``instance``), or images drawn so that identities come equally often
            (``identity``) or by the square root of their images (``sqrt``).
        order: ``global`` shuffles all rows of a lane in each epoch; ``window`` takes a lane's shards in random order
            and shuffles the rows of `window` shards at a time, which are read whole, front to back: for slow disks.
        window: shards of a lane whose rows are shuffled together by order=window. Each shard is a balanced random
            sample of the set already, so 2 mix enough, and a small window is ready sooner.
        mirror: mirrors each image with probability 1/2.
        augment: the augmentations of arcface_torch's DALI pipeline (training.data.transforms).
        seed: decides first values, order, mirroring and samples.
        device: ``Ascend``, ``GPU`` or ``CPU``; ``auto`` is the first of them that MindSpore finds on this host.
        threads: that decode images, in each rank; 0: one per core.
        check_shards: compares a rank's shards with their checksums: ``background`` beside the first epoch, and no
            checkpoint is written before that is done; ``true`` before the first step; ``false`` never. Tables of the
            dataset are always compared.
        loggers: told what metrics.jsonl is told, of ``tensorboard``, ``wandb`` and ``mlflow``; may be none.
        log_steps: steps between two lines of progress.
        checkpoint_steps: steps between two checkpoints; 0: one an epoch.
        keep: the last checkpoints that stay, beside the best.
        verify: verification sets (.bin) to measure on, on rank 0: paths, as they are or from the data root on.
        verify_steps: steps between two verifications; 0: one an epoch.
    """

    backbone: str = "r50"
    embedding_size: int = within(512, 2, 1 << 14)  # one component has no direction
    drop_path: float = within(0.1, 0, 0.99)
    mask_ratio: float = within(0.1, 0, 0.99)
    recompute: bool = False
    sync_bn: bool = False
    margin: tuple[float, ...] | str | dict[str, float | str] = (1.0, 0.5, 0.0)
    scale: float = within(64.0, 1e-3, 1e4)
    interclass_threshold: float = within(0.0, 0, 1)
    sample_rate: float = within(1.0, 1e-6, 1)
    centers: str = one_of("memory", "disk", "device")
    optimizer: str = one_of("sgd", "adamw")
    lr: float = within(0.1, 0, 1e3)
    lr_batch: int = within(1024, 0, 1 << 24)
    momentum: float = within(0.9, 0, 0.9999)
    weight_decay: float = within(5e-4, 0, 0.9999)
    schedule: str = one_of("polynomial", "multistep", "cosine")
    power: float = within(1.0, 1e-3, 100)
    milestones: tuple[int, ...] = ()
    gamma: float = within(0.1, 0, 1)
    warmup_epochs: float = within(0.0, 0, 10_000)
    epochs: int = within(20, 1, 10_000)
    global_batch: int = within(1024, 1, 1 << 24)
    accumulate: int = within(1, 1, 1 << 16)
    clip: float = within(5.0, 0, 1e9)
    amp: str = one_of("O0", "O2", "O3")
    loss_scale: float = within(0.0, 0, 2.0**24)
    sampling: str = one_of("instance", "identity", "sqrt")
    order: str = one_of("global", "window")
    window: int = within(WINDOW, 1, 1 << 20)
    mirror: bool = True
    augment: bool = False
    seed: int = within(0, 0, (1 << 63) - 1)
    device: str = one_of("auto", "Ascend", "GPU", "CPU")
    threads: int = within(0, 0, 1024)
    check_shards: bool | str = one_of("background", True, False)  # as YAML reads true and false
    loggers: tuple[str, ...] = ("tensorboard",)
    log_steps: int = within(10, 1, 1 << 31)
    checkpoint_steps: int = within(0, 0, 1 << 31)
    keep: int = within(3, 1, 1 << 20)
    verify: tuple[str, ...] = ()
    verify_steps: int = within(0, 0, 1 << 31)

    def __post_init__(self) -> None:
        check_settings(self)
        check_ranges(self, {"warmup_epochs": (0, self.epochs)})
        if 0 < self.loss_scale < 1:
            raise ConfigError(f"loss_scale: {self.loss_scale:g} is neither 0 (found as it goes) nor 1 or more")
        if isinstance(self.margin, tuple) and len(self.margin) != 3:
            raise ConfigError(f"margin: {list(self.margin)} is not [m1, m2, m3]")
        if isinstance(self.margin, dict) and not isinstance(self.margin.get("name"), str):
            raise ConfigError(f"margin: {self.margin} has no name of a margin, as in {{name: adaface, h: 0.333}}")
        if list(self.milestones) != sorted(set(self.milestones)) or (self.milestones and self.milestones[0] < 0):
            raise ConfigError(f"milestones: {list(self.milestones)} are not epochs in ascending order")

    def margin_numbers(self) -> tuple[str, dict[str, Any]]:
        """Returns the margin's name and the numbers that are given for it, by name."""
        if isinstance(self.margin, tuple):
            return "combined", dict(zip(("m1", "m2", "m3"), self.margin, strict=True))
        given = {"name": self.margin} if isinstance(self.margin, str) else self.margin
        return str(given["name"]), {name: value for name, value in given.items() if name != "name"}

    def peak_lr(self) -> float:
        """Returns the highest learning rate of the run, after scaling by the global batch."""
        return self.lr * self.global_batch / self.lr_batch if self.lr_batch else self.lr


CHOICES = choices_of(TrainConfig)
CHECKS = CHOICES["check_shards"]


def find_recipe(recipe: str) -> Path:
    """Returns the file of a recipe: of one that comes with faceshards (faceshards/configs/train), or a YAML file.

    Raises:
        ConfigError: no such name; the message lists the known ones. Or it is in a bucket.
    """
    try:
        place = as_location(recipe)
    except StorageError as error:
        raise ConfigError(str(error)) from None
    if isinstance(place, StoredPath):
        raise ConfigError(f"{place}: is in a bucket, and a recipe is a file on a disk here")
    if place.suffix:
        return place
    path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        known = sorted(entry.stem for entry in RECIPES.glob("*.yaml"))
        raise ConfigError(f"no recipe '{recipe}'; known recipes: {', '.join(known)}; a file of your own ends in .yaml")
    return path


def load_recipe(recipe: str, settings: dict[str, Any]) -> TrainConfig:
    """Returns a recipe with its entry for the backbone and then settings laid over it.

    Args:
        recipe: name of one that comes with faceshards, or a YAML file.
        settings: plain values by key, as --set gives them.

    Raises:
        ConfigError: no such recipe (the message lists the known ones), unknown key, bad value.
    """
    return resolve(read_recipe(find_recipe(recipe)), settings, TrainConfig()).config


def verification_sets(config: TrainConfig, data_root: Path) -> list[Path]:
    """Returns the verification sets of a run: each path as it is, or below the data root if it is not there.

    The recipes that come with faceshards name sets below the data root, where `faceshards build` has put them.
    """
    return [path if path.exists() else data_root / path for path in map(Path, config.verify)]

"""Recipes and settings of a run, and the learning rate that follows from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from faceshards.errors import ConfigError
from training.config import RECIPES, TrainConfig, load_recipe
from training.schedule import learning_rate

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes(recipe):
    config = load_recipe(recipe, {})
    assert (RECIPES / f"{recipe}.yaml").is_file()
    assert config.margin[1:] == ((0.5, 0.0) if recipe in ("casia", "ms1mv2", "ms1mv3") else (0.0, config.margin[2]))


def test_published_learning_rates():
    # arcface_torch: 0.1 at 8 x 128 images; its WebFace42M recipes use 0.4 at 32 x 128, ViT 1e-3 at 24 k.
    assert load_recipe("ms1mv3", {}).peak_lr() == pytest.approx(0.1)
    assert load_recipe("webface42m", {}).peak_lr() == pytest.approx(0.4)
    vit = {"optimizer": "adamw", "lr": 0.001, "lr_batch": 24576, "global_batch": 24576, "weight_decay": 0.1}
    assert load_recipe("webface42m", vit).peak_lr() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbon": "r50"}, "--set: unknown key 'backbon'; known keys: backbone, "),
        ({"epochs": "many"}, "--set: epochs: 'many' is not of type int"),
        ({"lr": float("nan")}, "--set: lr: nan is not of type float"),
        ({"margin": [1, 0.5]}, r"--set: margin: \[1.0, 0.5\] is not \[m1, m2, m3\]"),
        ({"margin": 3}, "--set: margin: 3 is not a list of numbers, a name, or a mapping with one"),
        ({"margin": {"h": 1}}, "--set: margin: {'h': 1.0} has no name of a margin, as in {name: adaface, h: 0.333}"),
        ({"margin": {"name": "adaface", "h": [1]}}, r"--set: margin: h: \[1\] is not of type float or str"),
        ({"check_shards": "later"}, "--set: check_shards: 'later' is not one of background, true, false"),
        ({"check_shards": 1}, "--set: check_shards: 1 is not of type bool or str"),
        ({"device": "TPU"}, "--set: device: 'TPU' is not one of auto, Ascend, GPU, CPU"),
        ({"sample_rate": 0}, "--set: sample_rate: 0.0 is outside"),
        ({"milestones": [3, 2]}, "milestones: .* are not epochs in ascending order"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("casia", settings)


def test_small_numbers_as_yaml_reads_them():
    assert load_recipe("synthetic", {"weight_decay": "5e-05", "lr": "1e-4"}).weight_decay == 5e-5
    with pytest.raises(ConfigError, match="'fast' is not of type float"):
        load_recipe("synthetic", {"lr": "fast"})
    with pytest.raises(ConfigError, match="is not of type float"):
        load_recipe("synthetic", {"lr": "inf"})


def test_unknown_recipe(tmp_path):
    with pytest.raises(ConfigError, match="no recipe 'lfw'; known recipes: casia, glint360k, ms1mv2"):
        load_recipe("lfw", {})
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(str(tmp_path / "mine.yaml"), {})
    with pytest.raises(ConfigError, match=r"s3://faces/mine\.yaml: is in a bucket, and a recipe is a file on a disk"):
        load_recipe("s3://faces/mine.yaml", {})
    with pytest.raises(ConfigError, match=r"s3://\.\.\.: an address holds no credentials"):
        load_recipe("s3://key:secret@faces/mine.yaml", {})
    (tmp_path / "mine.yaml").write_text("epochs: 3\n")
    assert load_recipe(str(tmp_path / "mine.yaml"), {"lr": 1}) == TrainConfig(epochs=3, lr=1.0)


BASE = TrainConfig(lr=1.0, lr_batch=0, epochs=10, warmup_epochs=1)


def rates(**changes):
    config = dataclasses.replace(BASE, **changes)
    return np.array([learning_rate(config, step, 20) for step in range(200)])


def test_warmup_and_polynomial():
    found = rates(power=2.0)
    np.testing.assert_allclose(found[:20], np.arange(1, 21) / 20)
    np.testing.assert_allclose(found[20:], (1 - np.arange(180) / 180) ** 2)


def test_the_default_decay_is_the_references():
    # PolynomialLRWarmup of arcface_torch goes by factors from step to step: 0.0500 half-way, 50.05 over 1,000 steps.
    config = TrainConfig(epochs=10)
    found = np.array([learning_rate(config, step, 100) for step in range(1000)])
    wanted = [0.1]
    for step in range(1, 1000):
        wanted.append(wanted[-1] * (1 - step / 1000) / (1 - (step - 1) / 1000))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert found[500] == pytest.approx(0.05)
    assert found.sum() == pytest.approx(50.05)


def test_cosine_and_multistep():
    found = rates(schedule="cosine", warmup_epochs=0.0)
    np.testing.assert_allclose(found, (1 + np.cos(np.pi * np.arange(200) / 200)) / 2)
    found = rates(schedule="multistep", milestones=(4, 8), gamma=0.5, warmup_epochs=0.0)
    np.testing.assert_allclose(found, np.repeat([1, 0.5, 0.25], [80, 80, 40]))

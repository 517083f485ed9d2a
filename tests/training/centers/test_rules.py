"""The rules and stores by name, and numbers that no rule takes."""

from __future__ import annotations

import pytest

from faceshards.errors import ConfigError
from training.centers.registry import STORES
from training.centers.rules import RULES, LazyAdamW, Sgd
from training.config import CHOICES, TrainConfig

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    ("rule", "arguments", "named"),
    [
        (Sgd, {"momentum": 1.0}, "momentum = 1.0"),
        (Sgd, {"weight_decay": -1e-4}, "weight_decay = -0.0001"),
        (LazyAdamW, {"weight_decay": 1.0}, "weight_decay = 1.0"),
        (LazyAdamW, {"betas": (0.9, 1.0)}, "beta2 = 1.0"),
        (LazyAdamW, {"betas": (-0.1, 0.9)}, "beta1 = -0.1"),
        (LazyAdamW, {"eps": 0.0}, "eps 0.0 is not above 0"),
    ],
)
def test_rules_out_of_range_are_refused(rule, arguments, named):
    with pytest.raises(ConfigError, match=f"centre update: {named}"):
        rule(**arguments)


def test_rules_and_stores_are_the_choices_of_the_settings():
    assert tuple(RULES) == CHOICES["optimizer"]
    assert tuple(STORES) == CHOICES["centers"]
    config = TrainConfig(momentum=0.8, weight_decay=0.01)
    rules = {name: rule.from_config(config) for name, rule in RULES.items()}
    assert (rules["sgd"].momentum, rules["sgd"].weight_decay, rules["adamw"].weight_decay) == (0.8, 0.01, 0.01)

"""The YAML file with comments says what the program does without it."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from mil.training.config import TrainConfig

YAML = Path(__file__).parents[3] / "configs" / "train.yaml"


def test_the_yaml_file_equals_the_defaults_and_says_why():
    text = YAML.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == asdict(TrainConfig())
    for line in text.splitlines()[1:]:
        assert len(line.partition("#")[2].split()) >= 3, line


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head": "transformer"}, "expected one of gated-abmil, abmil"),
        ({"folds": 1}, "--folds is 1, expected at least 2"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "--learning-rate is 0.0, expected more than 0"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"instance_dropout": 1.0}, "--instance-dropout is 1.0, expected 0 to below 1"),
        ({"memory": "disk"}, "memory is 'disk', expected one of auto, ram, mapped"),
        ({"val_fraction": 0.6}, "--val-fraction is 0.6"),
        ({"inner_folds": -1}, "--inner-folds is -1, expected at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"bootstrap": 10}, "bootstrap is 10, expected at least 100"),
    ],
)
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)

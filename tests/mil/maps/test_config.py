"""Settings of export-heatmaps."""

from pathlib import Path

import pytest
import yaml

from mil.demo.config import DemoConfig
from mil.maps.config import HeatmapConfig

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(("name", "config"), [("heatmap", HeatmapConfig), ("demo", DemoConfig)])
def test_the_commented_defaults_are_the_defaults(name, config):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert written == {k: v for k, v in vars(config()).items() if k != "overwrite"}

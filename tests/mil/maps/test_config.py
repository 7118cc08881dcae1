"""Settings of export-heatmaps."""

import subprocess
import sys
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


def test_the_settings_load_no_form():
    heavy = "{'torch', 'matplotlib', 'numpy', 'tifffile'}"
    asked = f"import sys, mil.cli.heatmaps, mil.maps.forms.registry; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "[]\n"

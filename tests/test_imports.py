"""Imports run against the data: mil may import features and tiling, features may import tiling, never back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "tiling": {"features", "mil", "torch", "torchvision", "timm"},
    "features": {"mil"},
    "mil": set(),
    "configs": {"tiling", "features", "mil"},
}
MODULES = sorted(p for package in FORBIDDEN for p in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_against_the_data(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not imported(path) & FORBIDDEN[package]


def test_names_tell_the_job() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [p for p in MODULES if p.stem in vague]


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def f():\n    from torch import nn\n    import mil.run\n")
    assert imported(module) == {"torch", "mil"}

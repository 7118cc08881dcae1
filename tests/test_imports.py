"""Imports run against the data: down the floors of the house, never up, never in a circle.

A room is a sub-package, or a module that stands in a package beside the sub-packages. Each may import what stands on a
lower floor; rooms of one floor do not know each other, nor do modules of one room import each other in a circle.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tiling", "features", "mil")
FLOORS = (  # from the ground up
    "tiling.jobs",
    "tiling.slides tiling.phantom tiling.slide_ids tiling.rules",
    "tiling.objects",
    "tiling.manifest",
    "tiling.grid tiling.tissue",
    "tiling.config",
    "tiling.store",
    "tiling.qc",
    "tiling.finished tiling.seen",
    "tiling.staging",
    "tiling.pipeline tiling.verify tiling.elsewhere",
    "tiling.all_slides",
    "tiling.api tiling.cli",
    "features.hdf5 features.request",
    "features.feature_file",
    "features.config features.encoders",
    "features.statistics",
    "features.embed",
    "features.making features.interop",
    "features.elsewhere",
    "features.pipeline features.check",
    "features.api features.cli",
    "mil.metrics mil.pages",
    "mil.tasks",
    "mil.cohort",
    "mil.heads",
    "mil.run",
    "mil.evaluation",
    "mil.report",
    "mil.training",
    "mil.maps",
    "mil.viewer mil.diagnosis mil.demo mil.line mil.machine",
    "mil.api",
    "mil.cli",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
NO_TORCH = {"tiling": {"torch", "torchvision", "timm"}, "features": set(), "mil": set()}
MOST_MODULES = 15  # of a room, its __init__ not counted
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """`mil.heads.zoo.abmil` → `mil.heads`; a package itself, `mil`, is the face of all its rooms."""
    return ".".join(module.split(".")[:2])


def imported(path: Path, deferred: bool = True) -> Iterable[tuple[str, str]]:
    """Each module that is imported with the name that is taken from it; deferred: those inside functions too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if deferred else top_level(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def top_level(tree: ast.Module) -> Iterable[ast.AST]:
    """Statements that run when the module is loaded; not those for the type checker alone."""
    return (node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))


def modules_of(path: Path, deferred: bool = True) -> set[str]:
    """Modules of this project that a file imports."""
    known = {name_of(module) for module in MODULES}
    found = {f"{module}.{name}" if f"{module}.{name}" in known else module for module, name in imported(path, deferred)}
    return {module for module in found if module.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down_the_floors(path: Path) -> None:
    own = room_of(name_of(path))
    if own in PACKAGES:  # what a package hands out may come from any of its rooms
        return
    assert own in FLOOR, f"{own} stands on no floor: name it in FLOORS"
    rising = {m for m in modules_of(path) if room_of(m) != own and FLOOR.get(room_of(m), len(FLOORS)) >= FLOOR[own]}
    assert not rising


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tiling_never_imports_torch(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not {module.split(".")[0] for module, _ in imported(path)} & NO_TORCH[package]


def test_no_circles() -> None:
    """Not inside a room either, nor hidden in a function."""
    left = {name_of(path): modules_of(path) - {name_of(path)} for path in MODULES}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_rooms_are_small_and_say_their_job() -> None:
    for folder in sorted({path.parent for path in MODULES}):
        own = [path for path in MODULES if path.parent == folder and path.name != "__init__.py"]
        assert len(own) <= MOST_MODULES, f"{folder} has {len(own)} modules"
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), f"{folder} does not say its job"


def test_every_floor_is_there() -> None:
    assert FLOOR.keys() <= {room_of(name_of(path)) for path in MODULES}


def test_configs_hold_no_code() -> None:
    assert not list((ROOT / "configs").rglob("*.py"))


def test_names_tell_the_job() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [p for p in MODULES if p.stem in vague]


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def f():\n    from torch import nn\n    import mil.run.layout\n")
    assert {name for name, _ in imported(module)} == {"torch", "mil.run.layout"}
    assert modules_of(module) == {"mil.run.layout"} and not modules_of(module, deferred=False)

"""An installed package has the templates, styles and scripts that its modules read: pyproject.toml names each."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tiling", "features", "mil")


def named(root: Path, package_data: dict[str, list[str]]) -> set[Path]:
    """Files below root that a wheel takes along besides modules."""
    folders = {root / package.replace(".", "/"): globs for package, globs in package_data.items()}
    return {path for folder, globs in folders.items() for pattern in globs for path in folder.glob(pattern)}


def there(root: Path) -> set[Path]:
    """All files of the packages that are no modules."""
    files = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    return {path for path in files if path.suffix not in (".py", ".pyc")}


def test_every_file_is_packaged() -> None:
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert there(ROOT) == named(ROOT, package_data)


@pytest.mark.parametrize(("globs", "missing"), [(["*.css"], {"page.html"}), (["*.css", "*.html"], set())])
def test_a_forgotten_file_is_seen(tmp_path: Path, globs: list[str], missing: set[str]) -> None:
    room = tmp_path / "mil" / "pages"
    room.mkdir(parents=True)
    for name in ("page.py", "page.css", "page.html"):
        (room / name).touch()
    assert {path.name for path in there(tmp_path) - named(tmp_path, {"mil.pages": globs})} == missing

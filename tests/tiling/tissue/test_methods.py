"""A tissue mask that another package brings by entry point."""

import os

import numpy as np
import pytest

from tiling.config import TilingConfig
from tiling.jobs.errors import SlideError
from tiling.store.patches import PatchStore
from tiling.tissue import methods
from tiling.tissue.thumbnail import Thumbnail
from tiling.tissue.tissue import map_tissue

MODULE = """
import numpy as np


def upper_half(pixels, mpp):
    assert pixels.dtype == np.uint8 and abs(mpp - 8) < 0.1
    pixels[:] = 0  # theirs to change
    mask = np.zeros(pixels.shape[:2], bool)
    mask[: len(mask) // 2] = True
    return mask


def as_numbers(pixels, mpp):
    return upper_half(pixels, mpp).astype(float)


def cropped(pixels, mpp):
    return upper_half(pixels, mpp)[:-1]


def nothing(pixels, mpp):
    return None
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """distribution(package, *lines, version): a package on the path, of children too, that names these masks."""
    methods._entry.cache_clear()

    def install(package, *lines, version="1.0"):
        folder = tmp_path / package
        info = folder / f"{package}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (folder / f"{package}.py").write_text(MODULE)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{methods.GROUP}]", *lines, ""]))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    yield install
    methods._entry.cache_clear()


def test_the_command_tiles_by_an_installed_mask_and_keeps_who_made_it(
    distribution, process, phantom_slide, tmp_path
) -> None:
    """In processes of their own: two slides on two workers."""
    distribution("their_masks", "upper-half = their_masks:upper_half")
    (tmp_path / "slides.csv").write_text(f"slide_id,path\na,{phantom_slide}\nb,{phantom_slide}\n")
    call = ("tile-slides", tmp_path / "slides.csv", "--out", tmp_path / "patches", "--patch-px", 128, "--workers", 2)
    done = process(*call, "--tissue", "upper-half")
    assert done.returncode == 0, done.stderr
    for name in "ab":
        store = PatchStore(tmp_path / f"patches/{name}.zarr")
        assert store.info.config["tissue"] == "upper-half"
        assert store.info.config["tissue_package"] == "their_masks 1.0"
        tissue = store.tissue_mask
        assert tissue[: len(tissue) // 2].all() and not tissue[len(tissue) // 2 :].any()
        assert store.thumbnail.any() and store.coords_l0[:, 1].max() < 3008 / 2
    assert "2 skipped" in process(*call, "--tissue", "upper-half").stdout
    distribution("their_masks", "upper-half = their_masks:upper_half", version="1.1")
    newer = process(*call, "--tissue", "upper-half")
    assert newer.returncode == 1
    failures = (tmp_path / "patches/failures.csv").read_text()
    assert "tissue_package: found 'their_masks 1.0', wanted 'their_masks 1.1'" in failures


def test_an_unknown_name_is_refused_with_those_there_are(distribution, command, phantom_slide, tmp_path) -> None:
    distribution("their_masks", "upper-half = their_masks:upper_half")
    refused = command("tile-slides", phantom_slide, "--out", tmp_path / "patches", "--tissue", "uper-half")
    assert refused.returncode == 2 and not (tmp_path / "patches").exists()
    said = (
        "--tissue uper-half: no such method; close to it is upper-half; those installed are otsu, entropy, all, upper"
    )
    assert said in refused.stderr


def test_our_own_names_stay_our_own(distribution) -> None:
    distribution("impostor", "otsu = impostor:nothing")
    assert "tissue_package" not in TilingConfig(tissue="otsu").content()
    assert map_tissue(Thumbnail(np.full((8, 8, 3), 240, np.uint8), 16.0), "otsu", 0.5).tissue.shape == (8, 8)


def test_what_is_no_mask_is_said(distribution) -> None:
    names = ("as_numbers", "cropped", "nothing", "absent")
    distribution("their_masks", *(f"{name} = their_masks:{name}" for name in names), "lost = no_such_module:mask")
    for name, message in {
        "as_numbers": r"their_masks:as_numbers returned float64 \(20, 30\), expected a bool array \(20, 30\)",
        "cropped": r"their_masks:cropped returned bool \(19, 30\), expected a bool array \(20, 30\)",
        "nothing": r"their_masks:nothing returned NoneType, expected a bool array",
        "absent": "cannot import their_masks:absent",
        "lost": "cannot import no_such_module:mask",
    }.items():
        with pytest.raises(SlideError, match=f"--tissue {name}: {message}"):
            map_tissue(Thumbnail(np.full((20, 30, 3), 240, np.uint8), 16.0), name, 0.5)


def test_one_name_of_two_packages_is_refused(distribution) -> None:
    distribution("first", "twice = first:nothing")
    distribution("second", "twice = second:nothing")
    with pytest.raises(ValueError, match="first:nothing and second:nothing both go by this name"):
        TilingConfig(tissue="twice")

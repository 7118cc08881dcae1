"""What each rule gives on fixed input, held to a file that bears the rule's version.

Where a rule was changed on purpose: raise its number in tiling/rules.py, then `python tests/tiling/test_rules.py`
writes the file of the new version; delete the old one.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tiling.config import TilingConfig
from tiling.grid.corners import covered_fraction, patch_grid
from tiling.grid.fit import fitted_grid
from tiling.grid.resample import read_patch
from tiling.grid.scale import choose_scale
from tiling.jobs.errors import SlideError
from tiling.manifest import SlideRow
from tiling.pipeline import tile_slide
from tiling.rules import RULES
from tiling.slides.opening import open_slide
from tiling.store.patches import PatchStore
from tiling.tissue.sharpness import sharpness
from tiling.tissue.thumbnail import Thumbnail, read_thumbnail
from tiling.tissue.tissue import map_tissue
from tiling.verify import verify_store

GOLDEN = Path(__file__).parents[1] / "golden" / "rules"
HEIGHT, WIDTH = 300, 400
PYRAMIDS = [(0.25, (1.0, 4.0, 16.0)), (0.5, (1.0,)), (0.2528, (1.0, 2.0)), (0.121, (1.0, 4.0)), (0.46, (1.0, 3.9))]


def picture():
    """(H, W, 3) uint8: noisy glass with dust and a thin line, tissue with nuclei and a hole, padding, a black edge."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = (x * 7919 + y * 104729 + x * y) % 7 % 4
    image = np.stack([236 - noise, 233 - noise, 238 - noise], -1)
    blob = ((x - 150) / 90) ** 2 + ((y - 150) / 100) ** 2 < 1
    hole = (x - 120) ** 2 + (y - 120) ** 2 < 64
    fat = (x - 190) ** 2 + (y - 190) ** 2 < 900
    nuclei = ((x * 13 + y * 29) // 17 % 5 == 0) & blob
    image[blob] = np.stack([205 - noise, 140 - 3 * noise, 185 - noise], -1)[blob]
    image[nuclei] = (120, 70, 150)
    image[blob & (hole | fat)] = (235, 232, 237)
    image[20:22, 60:300] = (200, 150, 190)
    image[260:263, 30:33] = (190, 120, 170)
    image[:, 370:] = (255, 255, 255)
    image[:, :6] = 12
    return image.astype(np.uint8)


def strokes():
    """The picture with pen of four colours over glass and tissue."""
    image = picture()
    for column, colour in [(60, (30, 60, 150)), (130, (25, 25, 30)), (200, (40, 140, 70)), (280, (190, 40, 50))]:
        image[40:260, column : column + 16] = colour
    return image


def scales():
    """The slides of PYRAMIDS at several targets: (level, reduction, side of a patch at level 0, stride)."""
    rows = []
    for mpp, downsamples in PYRAMIDS:
        slide = SimpleNamespace(path="s", mpp=(mpp, mpp), mpp_source="x", downsamples=downsamples)
        for target in (0.5, 0.51, 1.0, 1.7, 8.0):
            scale = choose_scale(slide, target, 512, 64)
            rows.append((scale.level, scale.reduction, scale.patch_size_l0, scale.stride_l0))
    return {"scales": np.array(rows)}


def grids():
    scale, tissue = SimpleNamespace(patch_size_l0=517, stride_l0=430, downsample=2.0), picture()[..., 1] < 180
    corners = patch_grid(5000, 4001, scale)
    found = {"corners": corners, "shares": covered_fraction(tissue, 13.7, corners, 517)}
    for least in (0.0, 0.2, 0.5):
        found[f"fitted_{least}"] = fitted_grid(tissue, 13.7, (5000, 4001), scale, least)
    return found


def pixels():
    """Patches at a level as it is, at a half and a third of it, and resampled; their sharpness; and the thumbnail."""
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(picture()).save(Path(folder) / "s.png")
        slide = open_slide(Path(folder) / "s.png")
        found = {"thumbnail": read_thumbnail(slide, 6.0).pixels}
        for target in (0.5, 1.0, 0.7, 1.5):
            scale = choose_scale(slide, target, 64, 0, 0.5)
            patches = [read_patch(slide, scale, x, y) for x, y in ((0, 0), (128, 64), (211, 97))]
            found[f"patches_{target}"] = np.stack(patches)
            found[f"sharpness_{target}"] = np.array([sharpness(patch) for patch in patches])
        slide.close()
    return found


def tissue():
    found = {}
    for method in ("otsu", "entropy"):
        shown = map_tissue(Thumbnail(picture(), 16.0), method, 0.5)
        found |= {f"{method}_tissue": shown.tissue, f"{method}_dark": shown.dark, f"{method}_white": shown.white}
    return found


def pen():
    return {f"pen_{mpp}": map_tissue(Thumbnail(strokes(), mpp / 0.5), "otsu", 0.5).pen for mpp in (4.0, 8.0, 20.0)}


OUTPUTS = {"scale": scales, "grid": grids, "pixels": pixels, "tissue": tissue, "pen": pen}


def file_of(rule):
    return GOLDEN / f"{rule}-{RULES[rule]}.npz"


def test_each_rule_has_the_file_of_its_version_and_no_other():
    assert OUTPUTS.keys() == RULES.keys()
    assert sorted(GOLDEN.iterdir()) == sorted(map(file_of, RULES))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_gives_what_its_version_gave(rule):
    found = OUTPUTS[rule]()
    with np.load(file_of(rule)) as expected:
        assert found.keys() == set(expected)
        for name, values in found.items():
            assert alike(values, expected[name]), f"{name}: the {rule} rules changed; raise their number"


def test_a_store_of_other_rules_is_named_and_never_taken_for_done(phantom_slide, tmp_path, monkeypatch):
    row, config = SlideRow("s", phantom_slide), TilingConfig(mpp=1.0, patch_px=128)
    done = tile_slide(row, config, tmp_path)
    assert done.status == "done" and tile_slide(row, config, tmp_path).status == "skipped"
    monkeypatch.setitem(RULES, "pen", 99)
    with pytest.raises(SlideError, match=r"\(version of the pen rules: found \d+, wanted 99\); .*--overwrite"):
        tile_slide(row, config, tmp_path)
    assert tile_slide(row, replace(config, overwrite=True), tmp_path).patches == done.patches
    assert verify_store(tmp_path / "s.zarr") == done.patches


def test_a_store_that_does_not_say_its_rules_is_read_and_not_added_to(tmp_path):
    store = PatchStore(shutil.copytree(GOLDEN.parent / "patches-v2.zarr", tmp_path / "s.zarr"))
    assert not any("rules" in key for key in store.info.provenance()) and verify_store(store.path) == 3


def alike(found, expected):
    """Equal, but for the last digit of floating point, which is another on other processors."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype.kind == "f":
        return np.allclose(found, expected, rtol=1e-5)
    differences = np.abs(found.astype(np.int64) - expected)
    return differences.max() <= (found.dtype.itemsize == 1) and differences.sum() <= 2 * (found.dtype.itemsize == 1)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, output in OUTPUTS.items():
        if not file_of(name).exists():
            np.savez_compressed(file_of(name), **output())
            print("written:", file_of(name))

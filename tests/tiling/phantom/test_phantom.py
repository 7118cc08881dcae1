"""Phantom slides: what is painted is what is planned, and what is written is what is painted."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely  # type: ignore[import-untyped]
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tiling.phantom.phantom import Phantom, PhantomSpec, write_phantom

F64 = NDArray[np.float64]
SPEC = PhantomSpec(width_px=2064, height_px=1544, seed=11, tumour=True)
REACH_PX = 13 / 0.25 + 1  # farthest pixel of a nucleus from its middle
SIDE = 700


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom(SPEC)


@pytest.fixture(scope="module")
def square(phantom: Phantom) -> tuple[int, int, NDArray[np.uint8]]:
    """A square across block borders, with its corner."""
    return 900, 500, phantom.render(900, 500, SIDE, SIDE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("phantoms")
    paths = {form: folder / f"phantom.{form}" for form in ("svs", "tiff")}
    for path in paths.values():
        write_phantom(SPEC, path)
    return paths


def lesion_patch_means(phantom: Phantom, centres: F64, size_px: int = 256) -> F64:
    half = size_px // 2
    crops = [phantom.render(int(x) - half, int(y) - half, size_px, size_px) for x, y in centres]
    return np.array([crop.mean((0, 1)) for crop in crops])


def mask_of(rings: list[F64], width_px: int, height_px: int, grow_px: float) -> NDArray[np.bool_]:
    """Pixels (height, width) whose middle lies in the polygons, grown or shrunk."""
    shape = shapely.union_all([shapely.Polygon(r) for r in rings]).buffer(grow_px)
    x, y = np.meshgrid(np.arange(width_px) + 0.5, np.arange(height_px) + 0.5)
    shapely.prepare(shape)
    inside: NDArray[np.bool_] = shapely.contains_xy(shape, x, y)
    return inside


# ---------------------------------------------------------------- pixels


@settings(max_examples=15, deadline=None)
@given(x=st.integers(0, SIDE - 1), y=st.integers(0, SIDE - 1), w=st.integers(1, 300), h=st.integers(1, 300))
def test_a_region_is_the_same_however_it_is_cut(
    phantom: Phantom, square: tuple[int, int, NDArray[np.uint8]], x: int, y: int, w: int, h: int
) -> None:
    x0, y0, whole = square
    w, h = min(w, SIDE - x), min(h, SIDE - y)
    np.testing.assert_array_equal(phantom.render(x0 + x, y0 + y, w, h), whole[y : y + h, x : x + w])


def test_block_borders_leave_no_seam(square: tuple[int, int, NDArray[np.uint8]]) -> None:
    _, _, whole = square
    green = whole[..., 1].astype(float)
    across = np.abs(np.diff(green, axis=1)).mean(0)  # between columns
    down = np.abs(np.diff(green, axis=0)).mean(1)
    for steps, border in ((across, 1024 - 900 - 1), (down, 1024 - 500 - 1)):
        assert steps[border] < 1.6 * np.median(steps)


def test_outside_the_slide_is_glass(phantom: Phantom) -> None:
    far = phantom.render(-5000, 90_000, 20, 30)
    assert far.shape == (30, 20, 3)
    assert (far == [243, 242, 244]).all()


def test_glass_is_claimed_only_where_it_is(phantom: Phantom) -> None:
    glass = phantom.render(0, 0, 64, 64)[0, 0]
    claims = 0
    for y in range(0, 1536, 256):
        for x in range(0, 2048, 256):
            if phantom.is_glass(x, y, 256, 256):
                claims += 1
                assert (phantom.render(x, y, 256, 256) == glass).all()
    assert claims > 3
    middle = phantom.tissue[0].mean(0).astype(int)
    assert not phantom.is_glass(int(middle[0]), int(middle[1]), 64, 64)


def test_the_seed_decides() -> None:
    same, other = (Phantom(replace(SPEC, seed=s)).render(1030, 700, 64, 64) for s in (SPEC.seed, SPEC.seed + 1))
    np.testing.assert_array_equal(same, Phantom(SPEC).render(1030, 700, 64, 64))
    assert (same != other).mean() > 0.5


def test_scanners_differ_in_colour_and_sharpness(phantom: Phantom) -> None:
    other = Phantom(replace(SPEC, scanner="B"))
    a, b = (p.render(1024, 512, 512, 512).astype(float) for p in (phantom, other))
    assert np.abs(a.mean((0, 1)) - b.mean((0, 1))).max() > 5
    fine_a, fine_b = ((im - ndimage.gaussian_filter(im, (1, 1, 0))).std() / im.std() for im in (a, b))
    assert fine_b < 0.8 * fine_a


# ---------------------------------------------------------------- lesions


@pytest.mark.parametrize(("width", "height", "seed"), [(2000, 2000, 0), (8192, 8192, 3), (40_000, 12_000, 5)])
def test_lesions_are_a_small_part_of_the_tissue_and_inside_it(width: int, height: int, seed: int) -> None:
    phantom = Phantom(PhantomSpec(width, height, seed, tumour=True))
    tissue = [shapely.Polygon(r) for r in phantom.tissue]
    lesions = [shapely.Polygon(r) for r in phantom.lesions]
    assert 1 <= len(lesions) <= 3
    assert all(p.is_valid for p in tissue + lesions)
    assert all(any(t.buffer(-20).contains(p) for t in tissue) for p in lesions)
    assert all(shapely.box(0, 0, width, height).contains(t) for t in tissue)
    fraction = sum(p.area for p in lesions) / sum(p.area for p in tissue)
    assert 0.015 < fraction <= 0.03 + 1e-9
    if len(lesions) > 1:
        assert shapely.union_all(lesions).area == pytest.approx(sum(p.area for p in lesions))


def test_lesions_keep_the_fraction_on_a_usual_slide() -> None:
    for seed in range(8):
        phantom = Phantom(PhantomSpec(8192, 8192, seed, tumour=True, lesion_fraction=0.05))
        tissue, lesion = (sum(shapely.Polygon(r).area for r in rings) for rings in (phantom.tissue, phantom.lesions))
        assert lesion / tissue == pytest.approx(0.05)


def test_without_a_tumour_there_is_no_lesion() -> None:
    phantom = Phantom(replace(SPEC, tumour=False))
    assert phantom.lesions == []
    assert phantom.lesion_geojson() == {"type": "FeatureCollection", "features": []}


def test_the_polygon_is_what_is_painted(phantom: Phantom) -> None:
    """A tumour changes pixels in the polygons, as far as a nucleus reaches, and nowhere else."""
    features = json.loads(json.dumps(phantom.lesion_geojson()))["features"]
    assert {f["properties"]["classification"]["name"] for f in features} == {"Tumor"}
    assert {f["properties"]["objectType"] for f in features} == {"annotation"}
    rings = [np.array(f["geometry"]["coordinates"][0]) for f in features]
    assert all((r[0] == r[-1]).all() for r in rings)
    without = Phantom(replace(SPEC, tumour=False))
    size = SPEC.width_px, SPEC.height_px
    changed = (phantom.render(0, 0, *size) != without.render(0, 0, *size)).any(-1)
    assert not (changed & ~mask_of(rings, *size, REACH_PX)).any()
    assert changed[mask_of(rings, *size, 0)].mean() > 0.4


def test_nuclei_in_lesions_are_larger() -> None:
    """Single dark objects: their typical area tells a lesion from the tissue that takes its place without."""
    spec = PhantomSpec(4096, 4096, 2, tumour=True)
    areas = []
    for tumour in (True, False):
        phantom = Phantom(replace(spec, tumour=tumour))
        ring = Phantom(spec).lesions[0]
        (x0, y0), (x1, y1) = np.floor(ring.min(0)).astype(int), np.ceil(ring.max(0)).astype(int)
        red = phantom.render(int(x0), int(y0), int(x1 - x0), int(y1 - y0))[..., 0]
        inside = mask_of([ring - [x0, y0]], int(x1 - x0), int(y1 - y0), -10)
        labels, n = ndimage.label((red < 125) & inside)
        area_um2 = np.bincount(labels.ravel())[1:] * spec.mpp**2
        assert n > 10
        areas.append(np.median(area_um2[area_um2 > 10]))
    assert areas[0] > 1.7 * areas[1]


def test_colour_does_not_give_a_lesion_away() -> None:
    spec = PhantomSpec(8192, 8192, 21, tumour=True)
    phantom, without = Phantom(spec), Phantom(replace(spec, tumour=False))
    middle = phantom.lesions[0].mean(0)
    centres = middle + np.array([[dx, dy] for dx in (-150, 0, 150) for dy in (-150, 0, 150)])
    lesion, normal = (lesion_patch_means(p, centres).mean(0) for p in (phantom, without))
    assert np.abs(lesion - normal).max() < 15


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("form", ["svs", "tiff"])
def test_openslide_reads_what_was_rendered(files: dict[str, Path], phantom: Phantom, form: str) -> None:
    with openslide.OpenSlide(files[form]) as slide:
        vendor = {"svs": "aperio", "tiff": "generic-tiff"}[form]
        assert slide.properties["openslide.vendor"] == vendor
        assert float(slide.properties["openslide.mpp-x"]) == SPEC.mpp
        assert float(slide.properties["openslide.mpp-y"]) == SPEC.mpp
        assert slide.level_dimensions == ((2064, 1552), (516, 388), (129, 97))  # 1544 is padded to 16 * 97
        assert slide.level_downsamples == (1.0, 4.0, 16.0)
        assert slide.properties["openslide.level[0].tile-width"] == "256"
        read = np.asarray(slide.read_region((0, 0), 0, (2064, 1552)).convert("RGB")).astype(float)
        rendered = phantom.render(0, 0, 2064, 1552).astype(float)
        assert np.abs(read - rendered).mean() < 3
        for level, factor in ((1, 4), (2, 16)):
            reduced = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
            blocks = rendered.reshape(1552 // factor, factor, 2064 // factor, factor, 3)
            error = reduced - blocks.mean((1, 3))
            assert np.abs(error).mean() < 4
            assert np.abs(error.mean((0, 1))).max() < 0.7


def test_svs_says_what_aperio_says(files: dict[str, Path]) -> None:
    with openslide.OpenSlide(files["svs"]) as slide:
        assert slide.properties["aperio.AppMag"] == "40"
        assert slide.properties["aperio.MPP"] == "0.25"
        assert slide.properties["openslide.objective-power"] == "40"
        thumbnail = np.asarray(slide.associated_images["thumbnail"].convert("RGB")).astype(float)
        level = np.asarray(slide.read_region((0, 0), 2, (129, 97)).convert("RGB")).astype(float)
        assert thumbnail.shape == level.shape
        assert np.abs(thumbnail - level).mean() < 4


@pytest.mark.parametrize("form", ["svs", "tiff"])
def test_tifffile_reads_the_same_levels(files: dict[str, Path], form: str) -> None:
    with tifffile.TiffFile(files[form]) as tiff, openslide.OpenSlide(files[form]) as slide:
        tiled = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        assert [page.shape for page in tiled] == [(1552, 2064, 3), (388, 516, 3), (97, 129, 3)]
        decoded = tiled[1].asarray().astype(float)
        read = np.asarray(slide.read_region((0, 0), 1, (516, 388)).convert("RGB")).astype(float)
        assert np.abs(decoded - read).mean() < 1.5


@pytest.mark.parametrize(("mpp", "tile_px"), [(0.5, 240), (0.2526, 512)])
def test_other_resolutions_and_tiles(tmp_path: Path, mpp: float, tile_px: int) -> None:
    spec = PhantomSpec(1040, 1024, seed=4, tumour=False, scanner="B", mpp=mpp, tile_px=tile_px, jpeg_quality=95)
    for form in ("svs", "tiff"):
        phantom = write_phantom(spec, tmp_path / f"a.{form}")
        with openslide.OpenSlide(tmp_path / f"a.{form}") as slide:
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-6)
            assert slide.level_downsamples == (1.0, 4.0, 16.0)
            assert slide.properties["openslide.level[0].tile-height"] == str(tile_px)
            read = np.asarray(slide.read_region((0, 0), 0, (1040, 1024)).convert("RGB")).astype(float)
            rendered = phantom.render(0, 0, 1040, 1024).astype(float)
            assert np.abs(read - rendered).mean() < 3
            reduced = np.asarray(slide.read_region((0, 0), 1, (260, 256)).convert("RGB"))
            assert np.abs(reduced - rendered.reshape(256, 4, 260, 4, 3).mean((1, 3))).mean() < 4


def test_same_spec_same_bytes(files: dict[str, Path], tmp_path: Path) -> None:
    write_phantom(SPEC, tmp_path / "again.svs")
    assert (tmp_path / "again.svs").read_bytes() == files["svs"].read_bytes()
    write_phantom(replace(SPEC, seed=12), tmp_path / "other.svs")
    assert (tmp_path / "other.svs").read_bytes() != files["svs"].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.svs", "other.svs"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.tiff"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(Phantom, "render_rgbx", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        write_phantom(SPEC, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A wide slide of 135 MB of pixels, and pyramids beside. Not `ru_maxrss`: a child starts with its parent's peak."""
    program = f"""
import re
from pathlib import Path
from tiling.phantom.phantom import PhantomSpec, write_phantom
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
write_phantom(PhantomSpec(1024, 1024, 1, False), Path({str(tmp_path / "small.tiff")!r}))
before = peak()
write_phantom(PhantomSpec(10_000, 4_500, 1, False), Path({str(tmp_path / "wide.tiff")!r}))
print(before, peak())
"""
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    before_mb, after_mb = map(int, run.stdout.split())
    assert after_mb < 500
    assert after_mb - before_mb < 120


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width_px": 500}, "at least 1024"),
        ({"lesion_fraction": 0.2}, "lesion_fraction"),
        ({"lesion_fraction": 0.0}, "lesion_fraction"),
        ({"scanner": "C"}, "scanner"),
        ({"tile_px": 100}, "tile_px"),
        ({"mpp": 0.0}, "mpp"),
    ],
)
def test_impossible_specs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


def test_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svs or \.tiff"):
        write_phantom(SPEC, tmp_path / "slide.png")

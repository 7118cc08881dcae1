"""Findings on pixels: faults planted in phantoms are found by the right finding, and a clean cohort raises none."""

import functools
import io
import math
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from skimage.data import immunohistochemistry

from features.config import EmbedSettings, FeatureConfig
from features.embed.pipe import embed
from features.encoders import load_encoder
from features.feature_file import read_embeddings, read_statistics, write_embeddings
from features.pipeline import extract_features, find_stores
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.diagnose import make_findings
from mil.diagnosis.findings import domain_gap, normalisation, patches, scale
from mil.diagnosis.findings.normalisation import IMAGENET
from mil.diagnosis.findings.patches import as_seen
from mil.diagnosis.inputs import Sources, load_inputs
from mil.diagnosis.numbers.cell_size import cell_size_px
from mil.diagnosis.numbers.colours import colours_of
from mil.diagnosis.numbers.norm_distance import gap_of_images
from mil.diagnosis.numbers.reference_images import noise, photographs
from mil.diagnosis.numbers.site_ratio import site_ratios
from tiling.phantom.phantom import Phantom, PhantomSpec
from tiling.store.patches import AREA_SCORES, Candidates, MadePatch, PatchStore, PatchStoreInfo, encode, write_store
from tiling.tissue.sharpness import sharpness
from tiling.tissue.tissue import TissueMap

SITES, SLIDES, PATCHES, SIDE = ("north", "east", "west"), 4, 3, 192
MANY = 4  # patches where nothing is embedded
ALL = MANY * SLIDES * len(SITES)
ENTRIES = [normalisation, scale, patches]


@functools.cache
def phantom_blocks(seed, scanner):
    """Regions of tissue (2 * MANY, 512, 512, 3) at level 0, 0.25 µm a pixel; beginning a phantom takes the time."""
    phantom = Phantom(PhantomSpec(2048, 2048, seed, tumour=False, scanner=scanner))
    places = [(x, y, 512, 512) for y in range(0, 2048, 512) for x in range(0, 2048, 512)]  # what a phantom is drawn in
    found = []
    for number in np.random.default_rng(seed).permutation(len(places)):
        if len(found) < 2 * MANY and not phantom.is_glass(*places[number]):
            pixels = phantom.render(*places[number])
            found += [pixels] if pixels.mean() < 220 else []
    return np.stack(found)


def phantom_of(number, l0_px=2 * SIDE):
    """Patches (MANY, SIDE, SIDE, 3) of a slide; l0_px level-0 pixels are one side. Two slides share a phantom."""
    phantom, half = number % 3 + number // 6 * 3, number // 3 % 2
    blocks = phantom_blocks(phantom, "B" if SITES[number % 3] == "east" else "A")
    regions = blocks[half * MANY : (half + 1) * MANY, :l0_px, :l0_px]
    return np.stack([np.asarray(Image.fromarray(r).resize((SIDE, SIDE), Image.Resampling.BOX)) for r in regions])


def write_patches(path, slide_id, patches):
    info = PatchStoreInfo(
        **dict(slide_id=slide_id, fingerprint=f"{slide_id}:{patches.sum()}", width_l0=4096, height_l0=4096),
        **dict(mpp_l0=0.25, mpp_source="openslide", mpp_table=math.nan, mpp=0.5, patch_size_px=SIDE),
        **dict(patch_size_l0=2 * SIDE, overlap_px=0, level=0, backend="openslide", packages={}),
        **dict(config={"pixels": "zstd", "jpeg_quality": 90}, thumbnail_downsample=64.0),
    )
    scores = {name: np.ones(len(patches), np.float32) for name in AREA_SCORES}
    tissue = TissueMap(*np.ones((4, 64, 64), bool))
    made = (MadePatch(i, sharpness(patch), encode(patch, info)) for i, patch in enumerate(patches))
    coords = np.arange(2 * len(patches), dtype=np.int64).reshape(-1, 2) * 2 * SIDE
    write_store(path, info, Candidates(coords, scores), tissue, np.zeros((64, 64, 3), np.uint8), made)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with patches, features `f` and slides.csv."""
    folder, rows = tmp_path_factory.mktemp("cohort"), []
    for i in range(SLIDES * len(SITES)):
        site, name = SITES[i % 3], f"s{i:02d}"
        write_patches(folder / f"patches/{name}.zarr", name, phantom_of(i)[:PATCHES])
        rows.append((name, f"p{i:02d}", site, ("no", "yes")[i // 3 % 2]))
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "label"]).to_csv(folder / "slides.csv", index=False)
    config = FeatureConfig(encoder="efficientnet-lite0", device="cpu", precision="fp32")
    stores = find_stores(folder / "patches")
    outcomes = extract_features(stores, config, folder / "patches", folder / "f")
    assert outcomes.counts == {"done": SLIDES * len(SITES)}
    return folder


def with_other_patches_of_west(clean, folder, change):
    """The clean cohort, but for the pixels of the site west: change(patches, number) of each slide."""
    (folder / "patches").mkdir(parents=True)
    shutil.copy(clean / "slides.csv", folder)
    for i, path in enumerate(sorted((clean / "f").glob("*.h5"))):
        store, embeddings = folder / f"patches/{path.stem}.zarr", read_embeddings(path)
        write_patches(store, path.stem, change(phantom_of(i), i) if SITES[i % 3] == "west" else phantom_of(i))
        info = replace(embeddings.info, store_digest=PatchStore(store).digest)
        write_embeddings(folder / "f" / path.name, replace(embeddings, info=info))
    return folder


def inputs_of(folder, features="f", **settings):
    config = DiagnoseConfig(**{"bootstrap": 100, "folds": 3, "sample_patches": 20, "device": "cpu", **settings})
    return load_inputs(Sources(folder / features, folder / "slides.csv", "label", folder / "patches"), config)


def diagnose(inputs, entries=ENTRIES):
    return {finding.key: finding for finding in make_findings(inputs, entries)}


def test_features_of_a_clean_cohort_raise_no_alarm(clean):
    found = diagnose(inputs_of(clean), [ENTRIES[0], ENTRIES[2]])
    assert found["normalisation"].severity == found["patches"].severity == "fine"
    assert found["normalisation"].numbers["difference of stored features from embedded again"]["value"] < 0.01


def test_a_blurred_scanner_is_found_and_no_wrong_scale(clean, tmp_path):
    blurred = with_other_patches_of_west(clean, tmp_path, lambda p, _: ndimage.gaussian_filter(p, (0, 1.5, 1.5, 0)))
    found = diagnose(inputs_of(blurred, sample_patches=ALL), ENTRIES[1:])
    assert found["patches"].severity == "fault" and found["patches"].evidence["blurred_sites"] == ["west"]
    assert found["scale"].severity == "fine"


def test_a_wrong_scale_of_one_site_is_found_and_no_blur(clean, tmp_path):
    twice = with_other_patches_of_west(clean, tmp_path, lambda _, i: phantom_of(i, l0_px=SIDE))
    found = diagnose(inputs_of(twice, sample_patches=ALL), ENTRIES[1:])
    assert found["scale"].severity == "fault" and found["scale"].evidence["site"] == "west"
    assert 1.5 < found["scale"].numbers["size of cells in west over the others"]["value"] < 2.6
    assert found["patches"].severity == "fine"
    same = diagnose(
        inputs_of(with_other_patches_of_west(clean, tmp_path / "same", lambda p, _: p), sample_patches=ALL),
        ENTRIES[1:],
    )
    assert same["scale"].severity == same["patches"].severity == "fine"


@pytest.mark.parametrize("said", [False, True])
def test_a_wrong_normalisation_is_found_and_named(clean, said, monkeypatch):
    monkeypatch.setattr(normalisation, "_CHECKED", 8)
    encoder = load_encoder("efficientnet-lite0")
    wrong = encoder.with_preprocessing(mean=IMAGENET[0], std=IMAGENET[1])
    inputs = inputs_of(clean)
    folder = clean / f"wrong-{said}"
    for path in sorted((clean / "f").glob("*.h5")):
        right, statistics = read_embeddings(path), read_statistics(path)
        rows = np.flatnonzero(inputs.sample.slides == list(inputs.cohort.slide_ids).index(path.stem))
        features = right.features.copy()
        features[inputs.sample.indices[rows]] = embed(
            wrong, inputs.sample.pixels[rows], EmbedSettings(device="cpu", precision="fp32")
        )
        info = replace(right.info, normalisation=wrong.preprocessing.normalisation) if said else right.info
        write_embeddings(folder / path.name, replace(right, features=features, info=info), statistics)
    again = inputs_of(clean, folder.name)
    found = normalisation.find(again)
    assert found.severity == "fault" and "ImageNet's mean and deviation" in found.remedy
    assert found.numbers["difference of stored features from embedded again"]["value"] > 0.2
    without = normalisation.find(replace(again, sources=replace(again.sources, patches=None)))
    assert without.severity == ("fault" if said else "fine")


def test_colours_are_those_of_all_pixels_and_averaging_deviations_is_less(clean):
    inputs = inputs_of(clean, sample_patches=SLIDES * 3 * PATCHES)
    pixels = inputs.sample.pixels.reshape(-1, 3) / 255
    found = colours_of(inputs.statistics)
    assert np.allclose(found.mean, pixels.mean(0)) and np.allclose(found.std, pixels.std(0))
    each = [inputs.sample.pixels[inputs.sample.slides == i].reshape(-1, 3).std(0) / 255 for i in range(12)]
    assert np.allclose(found.averaged_std, np.mean(each, 0)) and (found.averaged_std < found.std).all()


def test_patches_are_shown_as_the_network_gets_them():
    patches = immunohistochemistry()[None, :256, :256]
    assert np.abs(as_seen(load_encoder("efficientnet-lite0"), patches).astype(int) - patches).max() == 0


def test_cells_are_measured_whatever_the_sharpness():
    patches = phantom_of(0)
    size = np.nanmedian([cell_size_px(p) for p in patches])
    blurred = np.nanmedian([cell_size_px(ndimage.gaussian_filter(p, (1.5, 1.5, 0))) for p in patches])
    zoomed = np.nanmedian([cell_size_px(p) for p in phantom_of(0, l0_px=SIDE)])
    assert abs(blurred / size - 1) < 0.15 and 1.4 < zoomed / size < 2.5
    assert np.isnan(cell_size_px(np.full((64, 64, 3), 240, np.uint8)))


def test_the_ratio_of_a_site_is_that_of_medians_and_covers_patients():
    values, sites = np.array([2.0, 4, 8, 1, 1, 2, np.nan]), np.array(["a", "a", "a", "b", "b", "b", "b"])
    patients = np.array(["1", "1", "1", "4", "5", "6", "7"])
    first, second = site_ratios(values, sites, patients, 0)
    assert (first.site, first.slides, second.slides) == ("a", 3, 3)
    assert first.ratio["value"] == pytest.approx(4) and second.ratio["value"] == pytest.approx(1 / 4)
    assert first.ratio["low"] >= 2 - 1e-9 and first.ratio["high"] <= 4 + 1e-9  # one patient is all of the site a
    assert first.beyond(3.9, 1.9) and not first.beyond(4.1, 1.9) and not first.beyond(3.9, 2.1)
    third = site_ratios(np.array([1.0, 1, 2]), np.array(["a", "b", "c"]), np.array(["1", "2", "3"]), 0)
    assert third[0].site == "c" and third[0].ratio["value"] == pytest.approx(2)
    assert site_ratios(values[:3], sites[:3], patients[:3], 0) == []


def test_the_gap_of_real_and_drawn_tissue_lies_between_photographs_and_noise(data):
    encoder = load_encoder("efficientnet-lite0")
    sets = {"phantom": np.concatenate([phantom_of(number)[:4] for number in range(4)])}
    tiles, names = [], sorted((data / "ucsb_breast").glob("*.tar.xz"))
    with tarfile.open(names[0]) as archive:
        for member in [m for m in archive.getmembers() if m.name.endswith(".tif")][:12]:
            file = archive.extractfile(member)
            tiles.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))[224:448, 224:448])
    sets["UCSB"] = np.stack(tiles)
    with Image.open(data / "slides/CMU-1-Small-Region.svs") as image:
        slide = np.asarray(image.convert("RGB"))
    corners = [(y, x) for y in range(0, 2600, 224) for x in range(0, 1900, 224)]
    cut = [slide[y : y + 224, x : x + 224] for y, x in corners]
    sets["CMU-1"] = np.stack([p for p in cut if p.mean() < 225][:48:4])
    photographs_, noise_ = (gap_of_images(encoder, images).mean() for images in (photographs()[::2], noise()[:3]))
    for name, images in sets.items():
        assert len(images) >= 12, name
        halves = [gap_of_images(encoder, images[start::2]).mean() for start in (0, 1)]
        assert 1.2 * photographs_ < min(halves) and max(halves) < 0.8 * noise_, name
        assert abs(halves[0] - halves[1]) < 0.1 * (noise_ - photographs_), name


def test_the_distance_finding_has_a_place_between_its_ends(clean, monkeypatch):
    ends = {"photographs": lambda: photographs()[::3], "noise": lambda: noise()[:2]}
    monkeypatch.setattr(domain_gap, "_ENDS", ends)
    found = domain_gap.find(inputs_of(clean, sample_patches=20))
    place = found.numbers["place between photographs (0) and noise (1)"]
    assert 0.1 < place["low"] <= place["value"] <= place["high"] < 0.7 and found.severity == "fine"
    assert len(found.evidence["layers"]) == 49 and found.details[0].title == "By site"

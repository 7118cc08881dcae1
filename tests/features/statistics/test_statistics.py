"""Colours and batch norm inputs against loops over pixels and a plain network; the file of the cohort."""

import json
from unittest import mock

import h5py
import numpy as np
import pytest
import torch
import torchvision.models as zoo
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.encoders import load_encoder
from features.encoders.norms import norm_reference
from features.feature_file import read_embeddings, read_statistics
from features.statistics.by_products import ByProducts
from features.statistics.cohort import cohort_statistics
from features.statistics.colours import NO_PIXELS, PixelSums, pixel_sums
from features.statistics.norm_moments import no_moments
from tiling.store.patches import PatchStore


def tissue_pixels(store):
    """(K, 3) of all tissue pixels of a store: a loop over patches, rows and columns."""
    info, mask = store.info, store.tissue_mask
    found = []
    for patch, (x, y) in zip(store.read(range(len(store))), store.coords_l0, strict=True):
        step = info.patch_size_l0 / info.patch_size_px
        for row in range(info.patch_size_px):
            cell_y = min(int((y + (row + 0.5) * step) / info.thumbnail_downsample), mask.shape[0] - 1)
            for column in range(info.patch_size_px):
                cell_x = min(int((x + (column + 0.5) * step) / info.thumbnail_downsample), mask.shape[1] - 1)
                if mask[cell_y, cell_x]:
                    found.append(patch[row, column])
    return np.array(found, np.float64) / 255


images = arrays(np.uint8, st.tuples(st.integers(0, 20), st.just(3), st.just(7), st.just(7)))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@given(values=images, seed=st.integers(0, 2**32 - 1))
def test_sums_over_pixels_are_exact(kind, values, seed):
    """Both ways of adding, of which the one for GPUs runs on any device."""
    inside = np.random.default_rng(seed).random((len(values), 7, 7)) < 0.5
    with mock.patch("features.statistics.colours._HISTOGRAMS", {"cpu"} if kind == "cpu" else set()):
        check_sums(values, inside)


def check_sums(values, inside):
    got = pixel_sums(torch.from_numpy(values), torch.from_numpy(inside))
    pixels = values.transpose(0, 2, 3, 1)[inside].astype(int)
    assert got == PixelSums(len(pixels), tuple(pixels.sum(0)), tuple((pixels**2).sum(0)))
    everywhere = pixel_sums(torch.from_numpy(values))
    assert everywhere == pixel_sums(torch.from_numpy(values), torch.ones(len(values), 7, 7, dtype=bool))
    assert everywhere + NO_PIXELS == everywhere


@given(arrays(np.uint8, st.tuples(st.integers(1, 50), st.just(3), st.just(1), st.just(1))))
def test_mean_and_deviation_are_those_of_all_pixels(values):
    parts = [pixel_sums(torch.from_numpy(part)) for part in np.array_split(values, 3)]
    got = parts[0] + parts[1] + parts[2]
    pixels = values.reshape(-1, 3) / 255
    assert np.allclose(got.mean, pixels.mean(0), rtol=1e-14) and np.allclose(got.std, pixels.std(0), atol=1e-12)


def test_colours_of_slides_and_cohort_are_those_of_their_tissue_pixels(extract, make_store, tissue, tmp_path):
    stores, out = tmp_path / "patches", tmp_path / "out"
    halves = np.random.default_rng(0).random((63, 79)) < 0.5
    for i, n in enumerate((7, 2)):
        make_store(stores, f"s{i}", tissue(n, 64, seed=i) // (i + 1), mask=halves)
    make_store(stores, "empty", tissue(0, 64), side=64)
    assert extract(stores, "--out", out, "--batch-size", "3", "--device", "cpu") == 0
    pixels = [tissue_pixels(PatchStore(stores / f"s{i}.zarr")) for i in range(2)]
    for i in range(2):
        found = read_statistics(out / f"s{i}.h5")
        assert found.tissue_pixels == len(pixels[i]) > 1000
        assert np.allclose(found.pixel_mean, pixels[i].mean(0)) and np.allclose(found.pixel_std, pixels[i].std(0))
    together = np.concatenate(pixels)
    cohort = json.loads((out / "statistics.json").read_text())
    assert (cohort["slides"], cohort["tissue_pixels"]) == (2, len(together))
    assert np.allclose(cohort["pixel_mean"], together.mean(0)) and np.allclose(cohort["pixel_std"], together.std(0))
    within = np.sqrt(np.mean([p.var(0) for p in pixels], 0))  # what averaging the slides' variances would give
    assert not np.allclose(cohort["pixel_std"], within, rtol=0.05)
    assert read_statistics(out / "empty.h5").tissue_pixels == 0


def test_batch_norm_inputs_are_those_of_the_plain_network(extract, make_store, tissue, tmp_path):
    patches = tissue(130, 64)
    make_store(tmp_path / "patches", "s", patches)
    assert extract(tmp_path / "patches", "--out", tmp_path / "out", "--precision", "fp32", "--device", "cpu") == 0
    found = read_statistics(tmp_path / "out/s.h5")
    encoder = load_encoder("resnet18", "random")
    model = zoo.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(encoder.unmerged.state_dict())
    seen = {}
    for name, module in model.eval().double().named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[0]}))
    normal = (patches[[0, 64, 128]] / 255 - np.array(encoder.preprocessing.mean)) / np.array(encoder.preprocessing.std)
    with torch.no_grad():
        model(torch.from_numpy(normal).permute(0, 3, 1, 2))
    expected = torch.cat([seen[name].mean((0, 2, 3)) for name in found.norm_layers])
    variance = torch.cat([seen[name].var((0, 2, 3), correction=0) for name in found.norm_layers])
    assert found.norm_patches == 3 and len(found.norm_layers) == 20
    assert np.allclose(found.norm_mean, expected, rtol=1e-3, atol=1e-3 * float(variance.mean().sqrt()))
    assert np.allclose(found.norm_var, variance, rtol=1e-3)
    cohort = json.loads((tmp_path / "out/statistics.json").read_text())
    assert cohort["batch_norm"] == {"patches": 3}  # random weights have no distance to ImageNet


def test_the_distance_is_that_of_normal_distributions(tissue):
    encoder = load_encoder("efficientnet-lite0")
    mean, variance = norm_reference(encoder.unmerged)
    layers = {n: m.num_features for n, m in encoder.unmerged.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    pixels = pixel_sums(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))

    def distance(m, v):
        slide = ByProducts(pixels, no_moments(layers)).statistics
        slide = type(slide)(**{**vars(slide), "norm_patches": 1, "norm_mean": m, "norm_var": v})
        return cohort_statistics([slide, slide], encoder)["batch_norm"]

    same = distance(mean, variance)
    assert same["distance"] < 1e-12 and list(same["layers"]) == list(layers)
    shifted = distance(mean + 2 * np.sqrt(variance + 1e-5), variance)
    assert abs(shifted["distance"] - 2) < 1e-9 and all(abs(d - 2) < 1e-9 for d in shifted["layers"].values())


def test_a_file_without_statistics_is_read_and_left_out(extract, make_store, tissue, tmp_path):
    for slide_id in ("old", "new"):
        make_store(tmp_path / "patches", slide_id, tissue(3, 64))
    run = (tmp_path / "patches", "--out", tmp_path / "out", "--device", "cpu")
    assert extract(*run) == 0
    with h5py.File(tmp_path / "out/old.h5", "r+") as file:
        del file["statistics"]
    assert extract(*run) == 0
    assert read_statistics(tmp_path / "out/old.h5") is None and len(read_embeddings(tmp_path / "out/old.h5").features)
    assert json.loads((tmp_path / "out/statistics.json").read_text())["slides"] == 1

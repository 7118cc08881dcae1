"""The file of a cohort: its distance from ImageNet, and which feature files count."""

import json

import h5py
import numpy as np
import torch

from features.encoders import load_encoder
from features.encoders.norms import norm_reference
from features.feature_file import SlideStatistics, read_embeddings, read_statistics
from features.statistics.cohort import cohort_statistics


def test_the_distance_is_that_of_normal_distributions(tissue):
    encoder = load_encoder("efficientnet-lite0")
    mean, variance = norm_reference(encoder.unmerged)
    layers = {n: m.num_features for n, m in encoder.unmerged.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}

    def distance(m, v):
        slide = SlideStatistics(16, np.zeros(3), np.zeros(3), 1, layers, m, v)
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

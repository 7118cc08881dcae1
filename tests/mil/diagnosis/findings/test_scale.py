"""A wrong scale of one site is found on pixels, and the scale at which slides are told apart on features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_cohort import ALL, SIDE, inputs_of, phantom_of, with_other_patches_of_west
from planted_cohorts import DIM, Plan

from mil.diagnosis.findings import patches, scale
from mil.diagnosis.inputs import Inputs
from tiling.jobs.errors import RequestError

SEED, SLIDES = Plan().seed, Plan().slides


def test_a_wrong_scale_of_one_site_is_found_and_no_blur(drawn, tmp_path):
    twice = with_other_patches_of_west(drawn, tmp_path, lambda _, i: phantom_of(i, l0_px=SIDE))
    inputs = inputs_of(twice, sample_patches=ALL)
    found = scale.find(inputs)
    assert found.severity == "fault" and found.evidence["site"] == "west"
    assert 1.5 < found.numbers["size of cells in west over the others"]["value"] < 2.6
    assert patches.find(inputs).severity == "fine"
    same = inputs_of(with_other_patches_of_west(drawn, tmp_path / "same", lambda p, _: p), sample_patches=ALL)
    assert scale.find(same).severity == patches.find(same).severity == "fine"


def _at(inputs: Inputs, other: Path) -> Inputs:
    return replace(inputs, sources=replace(inputs.sources, scales=(other,)))


def test_the_scale_at_which_slides_are_told_apart_is_named(build, write_features, tmp_path):
    inputs = build("rare", witness=0.0)
    rng = np.random.default_rng(SEED)
    for i, name in enumerate(inputs.cohort.slide_ids[:-4]):  # the coarse scale lacks four slides
        bag = rng.normal(size=(8, DIM)) + 1.5 * inputs.cohort.labels[i]
        write_features(tmp_path / "coarse", str(name), bag, mpp=1.0)
        write_features(tmp_path / "other", str(name), bag, mpp=1.0, encoder="resnet18")
    found = scale.find(_at(inputs, tmp_path / "coarse"))
    assert found.severity == "look" and "better at 1 µm/px than at 0.5 µm/px" in found.verdict
    assert found.numbers["AUROC at 1 µm/px"]["low"] > 0.9 > found.numbers["AUROC at 0.5 µm/px"]["value"]
    assert found.evidence["slides"] == SLIDES - 4 and "--mpp 1 " in found.remedy
    good = build("rare")
    kept = scale.find(_at(good, inputs.sources.features))  # the same scale twice, once without signal
    assert kept.severity == "fine" and kept.numbers["gain at the best scale"]["value"] == 0
    with pytest.raises(RequestError, match="encoder is 'resnet18', expected 'resnet50'"):
        scale.find(_at(inputs, tmp_path / "other"))

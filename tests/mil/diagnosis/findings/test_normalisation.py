"""A wrong normalisation is found and named."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_cohort import inputs_of

from features.config import EmbedSettings
from features.embed.pipe import embed
from features.encoders import load_encoder
from features.feature_file import read_embeddings, read_statistics, write_embeddings
from mil.diagnosis.findings import normalisation
from mil.diagnosis.findings.normalisation import IMAGENET


@pytest.mark.parametrize("said", [False, True])
def test_a_wrong_normalisation_is_found_and_named(drawn, said, monkeypatch):
    monkeypatch.setattr(normalisation, "_CHECKED", 8)
    encoder = load_encoder("efficientnet-lite0")
    wrong = encoder.with_preprocessing(mean=IMAGENET[0], std=IMAGENET[1])
    inputs = inputs_of(drawn)
    folder = drawn / f"wrong-{said}"
    for path in sorted((drawn / "f").glob("*.h5")):
        right, statistics = read_embeddings(path), read_statistics(path)
        rows = np.flatnonzero(inputs.sample.slides == list(inputs.cohort.slide_ids).index(path.stem))
        features = right.features.copy()
        features[inputs.sample.indices[rows]] = embed(
            wrong, inputs.sample.pixels[rows], EmbedSettings(device="cpu", precision="fp32")
        )
        info = replace(right.info, normalisation=wrong.preprocessing.normalisation) if said else right.info
        write_embeddings(folder / path.name, replace(right, features=features, info=info), statistics)
    again = inputs_of(drawn, folder.name)
    found = normalisation.find(again)
    assert found.severity == "fault" and "ImageNet's mean and deviation" in found.remedy
    assert found.numbers["difference of stored features from embedded again"]["value"] > 0.2
    without = normalisation.find(replace(again, sources=replace(again.sources, patches=None)))
    assert without.severity == ("fault" if said else "fine")

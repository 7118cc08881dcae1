"""Scores of patches by their definitions."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_slides import attention

from mil.maps.scores import default_kind, patch_scores
from mil.tasks.classification import Classification
from tiling.jobs.errors import SlideError


def test_scores_by_their_definitions():
    rng = np.random.default_rng(0)
    logits, contributed = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    slide = replace(
        attention([(i * 512, 0) for i in range(30)], rng.random(30)),
        **dict(task=Classification(("a", "b", "c"), None), probabilities=np.array([0.2, 0.5, 0.3])),
        **dict(patch_logits=logits, contributions=contributed),
    )
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(patch_scores(slide, "logit").values, np.log(p[:, 1] / (1 - p[:, 1])))
    assert np.allclose(patch_scores(slide, "logit", "c").values, np.log(p[:, 2] / (1 - p[:, 2])))
    summed = contributed.sum(0)
    found = patch_scores(slide, "contribution", "a").values.sum()
    assert found == pytest.approx(summed[0] - (summed[1] + summed[2]) / 2)
    assert default_kind(slide) == "contribution" and default_kind(replace(slide, contributions=None)) == "logit"
    order = np.argsort(slide.attention)
    assert (patch_scores(slide, "attention", "", "rank").values[order] == np.arange(1, 31)).all()
    assert patch_scores(slide, "attention", "", "percentile").values[order[-1]] == pytest.approx(100 * 29.5 / 30)
    for kind, of_class in (("attention", "a"), ("gradient", "")):
        with pytest.raises(SlideError, match="has no"):
            patch_scores(slide, kind, of_class)

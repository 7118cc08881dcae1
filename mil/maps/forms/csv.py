"""Patch scores as a table: one row a patch, in level-0 pixels and in µm."""

from typing import Any

import pandas as pd

from mil.maps.scores import PatchScores
from mil.run.attention import SlideAttention


def score_table(slide: SlideAttention, scores: PatchScores) -> pd.DataFrame:
    """x, y of the top-left corner and the side, then all that is known of the patch; µm are empty without a scale."""
    x, y = slide.coords.T
    columns: dict[str, Any] = {
        **{"x_l0": x, "y_l0": y, "side_l0": slide.patch_size_l0},
        **{"x_um": x * slide.mpp_l0, "y_um": y * slide.mpp_l0, "side_um": slide.patch_size_l0 * slide.mpp_l0},
        "score": scores.values,
        "score_is": scores.meaning,
        "attention": slide.attention,
    }
    optional = {"attention": slide.class_attention, "contribution": slide.contributions, "logit": slide.patch_logits}
    for kind, values in optional.items():
        if values is not None:
            columns |= {f"{kind}_{name}": of for name, of in zip(slide.classes, values.T, strict=True)}
    return pd.DataFrame(columns)

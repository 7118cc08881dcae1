"""Patch scores as a table: one row a patch, in level-0 pixels and in µm."""

from pathlib import Path
from typing import Any

import pandas as pd

from mil.maps.drawn import Drawn
from tiling.jobs.atomic import write_text

ENDING = ".csv"
HELP = "all numbers of each patch, for pandas, R or a spreadsheet"


def write(path: Path, drawn: Drawn) -> None:
    write_text(path, _text(drawn))


def read_provenance(path: Path, drawn: Drawn) -> dict[str, Any]:
    """A table has no place for its origin: the very same table has the same one."""
    return dict(drawn.provenance) if path.read_text(encoding="utf-8") == _text(drawn) else {"scores": "others"}


def score_table(drawn: Drawn) -> pd.DataFrame:
    """x, y of the top-left corner and the side, then all that is known of the patch; µm are empty without a scale."""
    slide, scores = drawn.slide, drawn.scores
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


def _text(drawn: Drawn) -> str:
    return score_table(drawn).to_csv(index=False)

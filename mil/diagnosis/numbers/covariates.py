"""What is known of a slide apart from its tissue: where and how it was scanned, its colour, sharpness and size."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.diagnosis.inputs import Inputs
from tiling.jobs.errors import SlideError
from tiling.store.patches import PatchStore

Floats = NDArray[np.float64]
_NAMED = {"scanner": "scanner", "jpeg_quality": "JPEG quality", "stain": "stain", "batch": "batch"}


@dataclass(frozen=True)
class Covariate:
    """vectors (S, D). A technical one cannot be a sign of the disease; others (colour, size) may be."""

    name: str
    vectors: Floats
    technical: bool


def covariates(inputs: Inputs) -> list[Covariate]:
    """Those that are known of every slide and are not the same for all."""
    cohort = inputs.cohort
    found = []
    if inputs.sites is not None:
        found.append(Covariate("site", _one_hot(inputs.sites), True))
    table = pd.read_csv(inputs.table, dtype=str, skipinitialspace=True, encoding="utf-8-sig", keep_default_na=False)
    table.columns = table.columns.str.strip()
    if "slide_id" in table:
        rows = table.set_index(table["slide_id"].str.strip()).reindex(cohort.slide_ids).fillna("")
        for column, name in _NAMED.items():
            if column in rows and column != inputs.target:
                found.append(Covariate(name, _column(rows[column].str.strip()), True))
    sizes = np.array([len(features) for features in cohort.features], float)
    found.append(Covariate("number of patches", np.log(sizes)[:, None], False))
    mpps = np.array([info.mpp_l0 for info in cohort.infos])
    if np.isfinite(mpps).all():
        found.append(Covariate("scale of the scan", np.log(mpps)[:, None], True))
    statistics = [of for of in inputs.statistics if of is not None and np.isfinite(of.pixel_mean).all()]
    if len(statistics) == len(cohort.slide_ids):
        colours = np.stack([np.concatenate([of.pixel_mean, of.pixel_std]) for of in statistics])
        found.append(Covariate("colour of the tissue", colours, False))
    sharpness = _sharpness(inputs)
    if sharpness is not None:
        found.append(Covariate("sharpness", sharpness[:, None], False))
    return [covariate for covariate in found if (np.ptp(covariate.vectors, axis=0) > 1e-6).any()]


def _one_hot(values: NDArray[np.str_]) -> Floats:
    one_hot: Floats = (values[:, None] == np.unique(values)).astype(float)
    return one_hot


def _column(values: "pd.Series[str]") -> Floats:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    return numbers[:, None] if np.isfinite(numbers).all() else _one_hot(values.to_numpy(str))


def _sharpness(inputs: Inputs) -> Floats | None:
    """(S,) log of the median sharpness; None unless every slide has its patch store."""
    if inputs.patches is None:
        return None
    values = []
    for slide_id in inputs.cohort.slide_ids:
        try:
            values.append(float(np.median(PatchStore(inputs.patches / f"{slide_id}.zarr").sharpness)))
        except SlideError:
            return None
    return np.asarray(np.log(np.maximum(values, 1e-6)))

"""What is known of a slide apart from its tissue: where and how it was scanned, its colour, sharpness and size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.feature_file import SlideStatistics
from mil.cohort.cohort import Cohort
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


def several_sites(cohort: Cohort) -> NDArray[np.str_] | None:
    """(S,) names of sites; None unless the table names at least two."""
    sites = cohort.sites
    return sites if sites is not None and len(set(sites[sites != ""])) > 1 else None


def covariates(
    cohort: Cohort,
    table: Path | pd.DataFrame,
    target: str,
    statistics: Sequence[SlideStatistics | None],
    patches: Path | None,
) -> list[Covariate]:
    """Those that are known of every slide and are not the same for all; statistics: S, patches: folder of stores."""
    sites = several_sites(cohort)
    found = [] if sites is None else [Covariate("site", _one_hot(sites), True)]
    found += _of_table(cohort, table, target)
    sizes = np.array([len(features) for features in cohort.features], float)
    found.append(Covariate("number of patches", np.log(sizes)[:, None], False))
    mpps = np.array([info.mpp_l0 for info in cohort.infos])
    if np.isfinite(mpps).all():
        found.append(Covariate("scale of the scan", np.log(mpps)[:, None], True))
    known = [of for of in statistics if of is not None and np.isfinite(of.pixel_mean).all()]
    if len(known) == len(cohort.slide_ids):
        colours = np.stack([np.concatenate([of.pixel_mean, of.pixel_std]) for of in known])
        found.append(Covariate("colour of the tissue", colours, False))
    sharpness = _sharpness(cohort, patches)
    if sharpness is not None:
        found.append(Covariate("sharpness", sharpness[:, None], False))
    return [covariate for covariate in found if (np.ptp(covariate.vectors, axis=0) > 1e-6).any()]


def _of_table(cohort: Cohort, table: Path | pd.DataFrame, target: str) -> list[Covariate]:
    """Columns of the slide table with a known name."""
    if isinstance(table, Path):
        table = pd.read_csv(table, dtype=str, skipinitialspace=True, encoding="utf-8-sig", keep_default_na=False)
    table = table.rename(columns=str.strip).astype(object).where(table.notna(), "").astype(str)
    if "slide_id" not in table:
        return []
    rows = table.set_index(table["slide_id"].str.strip()).reindex(cohort.slide_ids).fillna("")
    columns = {column: name for column, name in _NAMED.items() if column in rows and column != target}
    return [Covariate(name, _column(rows[column].str.strip()), True) for column, name in columns.items()]


def _one_hot(values: NDArray[np.str_]) -> Floats:
    one_hot: Floats = (values[:, None] == np.unique(values)).astype(float)
    return one_hot


def _column(values: "pd.Series[str]") -> Floats:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    return numbers[:, None] if np.isfinite(numbers).all() else _one_hot(values.to_numpy(str))


def _sharpness(cohort: Cohort, patches: Path | None) -> Floats | None:
    """(S,) log of the median sharpness; None unless every slide has its patch store."""
    if patches is None:
        return None
    values = []
    for slide_id in cohort.slide_ids:
        try:
            values.append(float(np.median(PatchStore(patches / f"{slide_id}.zarr").sharpness)))
        except SlideError:
            return None
    return np.asarray(np.log(np.maximum(values, 1e-6)))

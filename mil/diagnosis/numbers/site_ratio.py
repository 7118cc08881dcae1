"""Whether one site's slides differ from the others' in a positive measure, beyond chance between patients."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.diagnosis.finding import Figure
from mil.metrics.bootstrap import draw_weights, interval

_DRAWS = 1000


@dataclass(frozen=True)
class SiteRatio:
    """The site's median over that of the other sites' medians, with its interval over patients.

    Each of the other sites counts once, so that one odd site among them does not make a usual one look odd.
    """

    site: str
    slides: int
    ratio: Figure

    def beyond(self, least: float, surely: float) -> bool:
        """Whether the ratio is at least `least` (or at most its inverse), and all of the interval beyond `surely`."""
        value, low, high = (np.log(self.ratio[key] or np.nan) for key in ("value", "low", "high"))
        return bool(abs(value) >= np.log(least) and (low > np.log(surely) or high < -np.log(surely)))


def site_ratios(
    values: NDArray[np.float64], sites: NDArray[np.str_], patients: NDArray[np.str_], seed: int
) -> list[SiteRatio]:
    """values (S,) above 0, NaN where a slide has none; sites with a name, the most different first."""
    there = np.isfinite(values) & (sites != "")
    values, sites, patients = values[there], sites[there], patients[there]
    weights = draw_weights(patients.tolist(), _DRAWS, seed) if len(values) else np.empty((0, 0))
    names = sorted(set(sites))
    if len(names) < 2:
        return []
    logs = np.stack([_weighted_medians(np.log(values[own]), weights[:, own]) for own in (sites == n for n in names)])
    found = []
    for i, name in enumerate(names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any other site
            others = np.nanmedian(np.delete(logs, i, axis=0), axis=0)
        ratio = dict(interval(np.exp(logs[i] - others)))
        if ratio["value"] is not None:
            found.append(SiteRatio(str(name), int((sites == name).sum()), ratio))
    return sorted(found, key=lambda r: -abs(np.log(r.ratio["value"] or 1)))


def _weighted_medians(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of values (n,) under each row of whole-number weights (R, n); NaN where all are zero."""
    order = np.argsort(values)
    up_to = weights[:, order].cumsum(1)
    total = up_to[:, -1:]
    low, high = ((up_to >= half).argmax(1) for half in (total / 2, total / 2 + 0.5))
    return np.where(total[:, 0] > 0, (values[order][low] + values[order][high]) / 2, np.nan)

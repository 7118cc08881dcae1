"""Is the map true? The model's decision when patches are dropped, or given back, in the order of their scores.

Deletion drops the patches with the highest scores first, insertion begins with them; what the models say of the slide
(the probability of the class, or another task's answer) is computed again each time, from the cached features, by the
models that did not see the slide (Petsiuk et al., BMVC 2018). A faithful score lowers it faster, and raises it faster,
than patches in random order. The area is the mean of two differences: under random deletion less that under deletion
by score, and under insertion by score less that under random insertion. 0 is chance; where answers are probabilities 1
cannot be passed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mil.maps.measured import mean_over_slides, read_measured
from mil.metrics.bootstrap import Interval
from mil.pages import words
from tiling.jobs.atomic import atomic_file, write_json

FRACTIONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ENDING, PICTURE = ".faithfulness.json", ".faithfulness.png"
_RANDOM_ORDERS = 39  # the fewest of which the lowest and highest are the 2.5 and 97.5 % quantiles
Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Faithfulness:
    """Curves (F,) over FRACTIONS of the patches: answers; random ones are (orders, F)."""

    deletion: Curve
    insertion: Curve
    random_deletion: Curve
    random_insertion: Curve

    @property
    def areas(self) -> Curve:
        """(orders,) the area against each random order."""
        gained = (self.random_deletion - self.deletion) + (self.insertion - self.random_insertion)
        return np.asarray(np.trapezoid(gained, FRACTIONS, axis=1) / (2 * FRACTIONS[-1]))


def measure(scores: NDArray[np.float64], answer: Callable[[NDArray[np.int64]], float], seed: int) -> Faithfulness:
    """scores (N,); `answer` for the slide with only these patches, of which there is always at least one.

    Insertion of a fraction f begins with at least one patch; deletion leaves at least one.
    """
    rng = np.random.default_rng(seed)
    orders = [np.argsort(-scores, kind="stable"), *(rng.permutation(len(scores)) for _ in range(_RANDOM_ORDERS))]
    cuts = [round(f * len(scores)) for f in FRACTIONS]

    def curve(kept: Callable[[NDArray[np.int64], int], NDArray[np.int64]]) -> Curve:
        return np.array([[answer(np.sort(kept(order, cut))) for cut in cuts] for order in orders])

    deletion = curve(lambda order, cut: order[min(cut, len(order) - 1) :])
    insertion = curve(lambda order, cut: order[: max(cut, 1)])
    return Faithfulness(deletion[0], insertion[0], deletion[1:], insertion[1:])


def write_slide(folder: Path, slide_id: str, score: str, digest: str, found: Faithfulness) -> None:
    """`<slide_id>.faithfulness.json` and `.png`. Its interval is over random orders (2.5 to 97.5 %).

    digest: of the scores, so that others are not taken for these.
    """
    low, high = np.quantile(found.areas, [0.025, 0.975], method="weibull")
    area: Interval = {"value": float(found.areas.mean()), "low": float(low), "high": float(high)}
    curves = {name: np.asarray(getattr(found, name)).tolist() for name in found.__dataclass_fields__}
    write_json(
        folder / f"{slide_id}{ENDING}",
        {"score": score, "scores": digest, "area": area, "fractions": list(FRACTIONS), **curves},
    )
    with atomic_file(folder / f"{slide_id}{PICTURE}") as temporary:
        _draw(found, f"{slide_id}, by {score}: area {area['value']:+.2f} ({words.low_to_high(area, 2)})").savefig(
            temporary, format="png", dpi=110
        )


def write_cohort(folder: Path, patient_of: Mapping[str, str]) -> None:
    """`faithfulness.json`: the mean area over the slides in `folder`, its interval by a bootstrap over patients."""
    areas, patients, score = [], [], ""
    for slide_id, patient in patient_of.items():
        found = read_measured(folder / f"{slide_id}{ENDING}")
        if found:
            areas.append(found["area"]["value"])
            patients.append(patient)
            score = found["score"]
    if areas:
        area = mean_over_slides(areas, patients)
        write_json(folder / "faithfulness.json", {"score": score, "area": area, "slides": len(areas)})


def _draw(found: Faithfulness, heading: str) -> Figure:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    pairs: Sequence[tuple[str, Curve, Curve]] = (
        ("share of patches dropped", found.deletion, found.random_deletion),
        ("share of patches given", found.insertion, found.random_insertion),
    )
    for axes, (name, by_score, at_random) in zip(figure.subplots(1, 2, sharey=True), pairs, strict=True):
        axes.plot(FRACTIONS, at_random.T, color="0.75", linewidth=0.8)
        axes.plot(FRACTIONS, at_random.mean(0), color="0.35", label="random order")
        axes.plot(FRACTIONS, by_score, color="#c2410c", linewidth=2, label="highest score first")
        axes.set_xlabel(name)
        if all(curve.min() >= 0 and curve.max() <= 1 for _, *curves in pairs for curve in curves):
            axes.set_ylim(-0.02, 1.02)
    figure.axes[0].set_ylabel("what the models say of the slide")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(heading, fontsize=10, parse_math=False)  # a name may hold dollar signs
    return figure

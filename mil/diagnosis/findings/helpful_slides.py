"""Finding: which training slides help on held-out slides, and which do harm."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm

from mil.diagnosis.finding import Details, Figure, Finding, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.influence import influences
from mil.diagnosis.sheet import sheet
from mil.metrics.bootstrap import draw_weights, interval
from mil.pages.chart import Chart
from tiling.jobs.errors import SlideError
from tiling.store.patches import PatchStore

KEY, TITLE, SHARE = "influence", "Which slides help or harm", 10
Floats = NDArray[np.float64]
_SHOWN = 8
_PICTURES, _PICTURE_PX = 4, 220
_HARM = 0.01  # of the loss, below which a slide is not worth a word


def find(inputs: Inputs) -> Finding:
    """Needs nothing but the cohort. With more than two classes, each against the rest, summed."""
    cohort = inputs.cohort
    changes, losses = _summed(inputs)
    weights = draw_weights(cohort.patient_ids.tolist(), inputs.config.bootstrap, inputs.seed)
    harm = _mean_harm(changes, weights[:1])[:, 0] / np.nanmean(losses)  # part of the loss that the slide adds
    order = np.argsort(-np.nan_to_num(harm, nan=-np.inf), kind="stable")
    worst, best = order[:_SHOWN], order[::-1][:_SHOWN]
    drawn = {i: _mean_harm(changes[[i]], weights)[0] / np.nanmean(losses) for i in (*worst.tolist(), *best.tolist())}
    bounds: dict[int, Figure] = {i: dict(interval(of)) for i, of in drawn.items()}
    surely = norm.isf(0.025 / len(harm))  # the worst of many is high by chance (Bonferroni)
    harmful = [i for i in worst.tolist() if harm[i] >= max(_HARM, surely * np.nanstd(drawn[i][1:]))]
    verdict, remedy = _judge(inputs, harm, harmful or worst.tolist(), len(harmful))
    return Finding(
        KEY,
        TITLE,
        "look" if harmful else "fine",
        verdict,
        remedy,
        {
            "most harmful: part of the loss": bounds[int(worst[0])],
            "most helpful: part of the loss": bounds[int(best[0])],
        },
        [_chart(harm[order]), *_pictures(inputs, "Most harmful slides", worst)],
        [_table(inputs, "Most harmful", worst, bounds), _table(inputs, "Most helpful", best, bounds)],
        {"harm": dict(zip(cohort.slide_ids.tolist(), harm.tolist(), strict=True))},
    )


def _summed(inputs: Inputs) -> tuple[Floats, Floats]:
    """Changes (S, S) and losses (S,) of `influences`, over the classes that are told."""
    classes, parts = inputs.told_classes, parts_of(inputs.folds)
    changes, losses = np.zeros((len(inputs.means),) * 2), np.zeros(len(inputs.means))
    for number, c in enumerate(classes):

        def progress(share: float, number: int = number) -> None:
            inputs.progress((number + share) / len(classes))

        changed, lost = influences(inputs.means, inputs.cohort.labels == c, parts, progress)
        changes, losses = changes + changed, losses + lost
    return changes, losses


def _judge(inputs: Inputs, harm: Floats, slides: list[int], harmful: int) -> tuple[str, str]:
    """Verdict and remedy; slides: the worst first."""
    name, share = str(inputs.cohort.slide_ids[slides[0]]), harm[slides[0]]
    if not harmful:
        return f"No slide does notable harm; {name} does most, {share:.1%} of the loss.", "Nothing to do."
    return (
        f"{harmful} of the slides shown do harm: without {name} the loss on held-out slides is {share:.1%} lower.",
        "Look at these slides: wrong label, wrong stain, artefacts, or a rare kind of which more are needed. Leave "
        "one out only for a reason that you can see; a slide that is only hard belongs in the data.",
    )


def _mean_harm(changes: Floats, weights: Floats) -> Floats:
    """changes (S, S), weights (R, S) of judged slides -> (S, R): how much higher the mean loss is with the slide."""
    there = np.isfinite(changes)
    total = there.astype(float) @ weights.T
    summed = np.where(there, changes, 0) @ weights.T
    return np.asarray(-np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0))


def _table(inputs: Inputs, title: str, slides: NDArray[np.int64], bounds: dict[int, Figure]) -> Details:
    cohort = inputs.cohort
    rows = tuple(
        (
            str(cohort.slide_ids[i]),
            str(cohort.patient_ids[i]),
            cohort.classes[cohort.labels[i]],
            f"{bounds[i]['value'] or 0:+.2%}",
            f"{bounds[i]['low'] or 0:+.2%} to {bounds[i]['high'] or 0:+.2%}",
        )
        for i in slides.tolist()
    )
    return Details(title, ("slide", "patient", "label", "adds to the loss", "95 % interval"), rows)


def _chart(harm: Floats) -> Picture:
    harm = harm[np.isfinite(harm)] * 100
    most = float(max(np.abs(harm).max(), 1e-6)) * 1.05
    chart = Chart((0, len(harm)), (-most, most), (420, 300), ("slides by harm", "part of the loss, %"), whole_x=True)
    chart.guide((0, len(harm)), (0, 0))
    chart.line(np.arange(len(harm)) + 0.5, harm, "c0")
    caption = "Each slide left out once of the linear probe on averaged features."
    return Picture("What each training slide adds to the held-out loss", caption, chart.svg("Harm"))


def _pictures(inputs: Inputs, title: str, slides: NDArray[np.int64]) -> list[Picture]:
    """Thumbnails side by side, of the slides whose store was given."""
    folder = inputs.sources.patches
    if folder is None:
        return []
    shown, names = [], []
    for i in slides[:_PICTURES].tolist():
        try:
            image = Image.fromarray(PatchStore(folder / f"{inputs.cohort.slide_ids[i]}.zarr").thumbnail)
        except SlideError:
            continue
        image.thumbnail((_PICTURE_PX, _PICTURE_PX))
        shown.append(image)
        names.append(f"{inputs.cohort.slide_ids[i]} ({inputs.cohort.classes[inputs.cohort.labels[i]]})")
    if not shown:
        return []
    return [Picture(title, "From the left: " + ", ".join(names) + ".", image=sheet(shown, _PICTURES), wide=True)]

"""Finding: which training slides help on held-out slides, and which do harm."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm, spearmanr

from mil.diagnosis.finding import Details, Figure, Finding, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.influence import influences
from mil.diagnosis.numbers.ridge import parts_of
from mil.metrics.bootstrap import draw_weights, interval
from mil.pages.chart import Chart
from tiling.jobs.errors import SlideError
from tiling.store.patches import PatchStore

KEY, TITLE = "influence", "Which slides help or harm"
Floats = NDArray[np.float64]
_EXACT = 500  # slides up to which every one is left out by retraining
_SAMPLE = 200  # of a larger cohort, to compare the estimate with
_PENALTY = 1e-2  # as in mil.evaluation.baseline without a validation part
_SHOWN = 8
_PICTURES, _PICTURE_PX = 4, 220
_HARM = 0.01  # of the loss, below which a slide is not worth a word


def find_helpful_slides(inputs: Inputs) -> Finding:
    """Needs nothing but the cohort. With more than two classes, each against the rest, summed."""
    cohort, count = inputs.cohort, len(inputs.cohort.labels)
    rng = np.random.default_rng(np.random.SeedSequence((inputs.seed, 12)))
    exact = np.zeros(count, bool)
    exact[rng.permutation(count)[: count if count <= _EXACT else _SAMPLE]] = True
    classes = range(len(cohort.classes)) if cohort.positive is None else [cohort.positive]
    made = []
    for number, c in enumerate(classes):
        made.append(
            influences(
                inputs.means,
                cohort.labels == c,
                [(train, test) for train, test in parts_of(inputs.folds)],
                _PENALTY,
                exact,
                lambda share, number=number: inputs.progress((number + share) / len(classes)),  # type: ignore[misc]
            )
        )
    retrained, estimated, losses = (np.sum([of[k] for of in made], axis=0) for k in range(3))
    changes = retrained if exact.all() else estimated
    weights = draw_weights(cohort.patient_ids.tolist(), inputs.config.bootstrap, inputs.seed)
    harm = _mean_harm(changes, weights[:1])[:, 0] / np.nanmean(losses)  # part of the loss that the slide adds
    order = np.argsort(-np.nan_to_num(harm, nan=-np.inf), kind="stable")
    both = exact & np.isfinite(harm)
    agreement = _agreement(_mean_harm(retrained, weights[:1])[both, 0], _mean_harm(estimated, weights[:1])[both, 0])
    worst, best = order[:_SHOWN], order[::-1][:_SHOWN]
    bounds = {int(i): _interval(changes[i], weights, losses) for i in (*worst, *best)}
    surely = norm.isf(0.025 / count)  # the worst of many is high by chance (Bonferroni)
    harmful = [i for i in worst.tolist() if harm[i] >= max(_HARM, surely * _error(changes[i], weights, losses))]
    way = "left out by exact retraining" if exact.all() else "by influence functions"
    name = str(cohort.slide_ids[worst[0]])
    if harmful:
        verdict = (
            f"{len(harmful)} of the slides shown do harm: without {cohort.slide_ids[harmful[0]]} the loss on held-out "
            f"slides is {harm[harmful[0]]:.1%} lower."
        )
        remedy = (
            "Look at these slides: wrong label, wrong stain, artefacts, or a rare kind of which more are needed. Leave "
            "one out only for a reason that you can see; a slide that is only hard belongs in the data."
        )
    else:
        verdict = f"No slide does notable harm; {name} does most, {harm[worst[0]]:.1%} of the loss."
        remedy = "Nothing to do."
    numbers: dict[str, Figure] = {
        "most harmful: part of the loss": bounds[int(worst[0])],
        "most helpful: part of the loss": bounds[int(best[0])],
        "rank agreement of estimate and retraining": agreement,
    }
    return Finding(
        KEY,
        TITLE,
        "look" if harmful else "fine",
        verdict,
        remedy,
        numbers,
        [_chart(harm[order], way), *_pictures(inputs, "Most harmful slides", worst)],
        [_table(inputs, "Most harmful", worst, bounds), _table(inputs, "Most helpful", best, bounds)],
        {"harm": dict(zip(cohort.slide_ids.tolist(), harm.tolist(), strict=True)), "way": way},
    )


def _mean_harm(changes: Floats, weights: Floats) -> Floats:
    """changes (S, S), weights (R, S) of judged slides -> (S, R): how much higher the mean loss is with the slide."""
    there = np.isfinite(changes)
    total = there.astype(float) @ weights.T
    summed = np.where(there, changes, 0) @ weights.T
    return np.asarray(-np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0))


def _interval(changes: Floats, weights: Floats, losses: Floats) -> Figure:
    """Harm of one slide, changes (S,), as part of the loss, over the judged patients."""
    return dict(interval(_mean_harm(changes[None], weights)[0] / np.nanmean(losses)))


def _error(changes: Floats, weights: Floats, losses: Floats) -> float:
    """Standard error of `_interval`."""
    return float(np.nanstd(_mean_harm(changes[None], weights[1:])[0] / np.nanmean(losses)))


def _agreement(first: Floats, second: Floats) -> Figure:
    """Spearman's rank correlation with its interval (Fisher's z with Bonett & Wright's variance, 2000)."""
    if len(first) < 4:
        return {"value": None, "low": None, "high": None}
    rho = float(spearmanr(first, second).statistic)
    half = 1.96 * np.sqrt((1 + rho**2 / 2) / (len(first) - 3))
    z = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return {"value": rho, "low": float(np.tanh(z - half)), "high": float(np.tanh(z + half))}


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


def _chart(harm: Floats, way: str) -> Picture:
    harm = harm[np.isfinite(harm)] * 100
    most = float(max(np.abs(harm).max(), 1e-6)) * 1.05
    chart = Chart((0, len(harm)), (-most, most), (420, 300), ("slides by harm", "part of the loss, %"), whole_x=True)
    chart.guide((0, len(harm)), (0, 0))
    chart.line(np.arange(len(harm)) + 0.5, harm, "c0")
    return Picture("What each training slide adds to the held-out loss", f"Each slide {way}.", chart.svg("Harm"))


def _pictures(inputs: Inputs, title: str, slides: NDArray[np.int64]) -> list[Picture]:
    """Thumbnails side by side, of the slides whose store was given."""
    shown, names = [], []
    for i in slides[:_PICTURES].tolist() if inputs.patches else []:
        try:
            image = Image.fromarray(PatchStore(inputs.patches / f"{inputs.cohort.slide_ids[i]}.zarr").thumbnail)  # type: ignore[operator]
        except SlideError:
            continue
        image.thumbnail((_PICTURE_PX, _PICTURE_PX))
        shown.append(image)
        names.append(f"{inputs.cohort.slide_ids[i]} ({inputs.cohort.classes[inputs.cohort.labels[i]]})")
    if not shown:
        return []
    strip = Image.new("RGB", (len(shown) * (_PICTURE_PX + 8) - 8, max(image.height for image in shown)), "white")
    for place, image in enumerate(shown):
        strip.paste(image, (place * (_PICTURE_PX + 8), 0))
    data = io.BytesIO()
    strip.save(data, "PNG")
    return [Picture(title, "From the left: " + ", ".join(names) + ".", image=data.getvalue(), wide=True)]

"""Finding: did training go well? Learning curves, spikes, shuffling, and what the run gets right and wrong."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm

from mil.diagnosis.finding import Details, Figure, Finding, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.sheet import sheet
from mil.evaluation.curve_verdict import REMEDIES, Verdict, judge_all, judge_fold
from mil.metrics.classification import evaluate
from mil.pages.words import counted
from mil.report.learning import learning_curve, loss_axis
from mil.run.checkpoint import fold_numbers
from mil.run.layout import picture_path, pictured_slides
from mil.run.tables import by_member, fitted_at_once, read_history, read_predictions
from mil.training.descent import epoch_order

KEY, TITLE, SHARE = "training", "Training", 3
_SPIKE = 6.0  # median absolute deviations from the running median
_LEAST_SPIKE = 0.2  # and part of the first loss
_CURVES, _STRIPS = 6, 3


def find(inputs: Inputs) -> Finding:
    """Raises MissingInput without a run."""
    folder, provenance = inputs.require_run()
    settings: dict[str, Any] = provenance["settings"]
    predictions = read_predictions(folder)
    curves = _Curves(_histories(folder), settings["epochs"])
    numbers = _figures(inputs, predictions)
    pictures, details = _strips(folder, predictions), [_buckets(inputs, predictions)]
    severity: Severity = "fine"
    said, remedy = "The head is fitted at once, without epochs.", "Nothing to do."
    if not curves.own_recipe:
        shuffled, p = shuffling(inputs.cohort.labels, settings["seed"], curves.longest)
        numbers["neighbours of one class in the loader's order"] = {"value": shuffled, "p": p}
        severity, said, remedy = _judge(curves, p)
        pictures, details = [*_pictures(curves), *pictures], [*details, _folds(curves)]
    evidence = {
        "verdicts": {k: vars(v) for k, v in curves.verdicts.items()},
        "spikes": curves.spikes,
        "spike_slides": {k: _spike_slides(curves.histories[k], found) for k, found in curves.spikes.items()},
    }
    return Finding(KEY, TITLE, severity, said, remedy, numbers, pictures, details, evidence)


def _histories(folder: Path) -> dict[str, pd.DataFrame]:
    """Of each model of a run: `2` is the one of the second fold, `2.3` the third of its several."""
    named: dict[str, pd.DataFrame] = {}
    for k in fold_numbers(folder):
        own = by_member(read_history(folder, k))
        named |= {f"{k + 1}.{m + 1}" if len(own) > 1 else f"{k + 1}": history for m, history in enumerate(own)}
    return named


@dataclass(frozen=True)
class _Curves:
    """Histories of all models, by name, and what they show."""

    histories: dict[str, pd.DataFrame]
    epochs: int  # that were asked for

    @property
    def own_recipe(self) -> bool:
        """Whether the head was fitted at once, without epochs."""
        return all(fitted_at_once(own) for own in self.histories.values())

    @property
    def longest(self) -> int:
        return max(len(history) for history in self.histories.values())

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        return {k: judge_fold(history, self.epochs) for k, history in self.histories.items()}

    @cached_property
    def spikes(self) -> dict[str, list[int]]:
        return {k: loss_spikes(history["train_loss"].to_numpy(float)) for k, history in self.histories.items()}


def _figures(inputs: Inputs, predictions: pd.DataFrame) -> dict[str, Figure]:
    cohort, config = inputs.cohort, inputs.config
    figures = evaluate(predictions, cohort.classes, cohort.positive, config.bootstrap, inputs.seed)
    numbers = {"AUROC of slides": figures["auroc"], "balanced accuracy": figures["balanced_accuracy"]}
    for kind in ("precision", "recall"):
        numbers |= {f"{kind} of {c}": figures[kind][c] for c in cohort.classes}
    return numbers


def _judge(curves: _Curves, p: float) -> tuple[Severity, str, str]:
    """p: of the loader's order."""
    verdicts = list(curves.verdicts.values())
    name, several = judge_all(verdicts), sum(len(found) > 0 for found in curves.spikes.values())
    said = _said(verdicts)
    if several:
        spiked = counted(several, "model")
        said += f" Training losses spike, those of {spiked}; the table of learning curves names the slides."
    said += " The loader shuffles anew in each epoch." if p > 1e-4 else " The loader's order goes with the labels."
    return "fine" if name == "fine" else "look", said, f"{'Nothing to do. ' * (name == 'fine')}{REMEDIES[name]}"


def _said(verdicts: list[Verdict]) -> str:
    """The verdicts in one sentence, the most frequent first."""
    counts = Counter(verdict.name for verdict in verdicts).most_common()
    folds = "; ".join(f"{name} in {count}" for name, count in counts)
    several = f"Learning curves of {counted(len(verdicts), 'model')}: {folds}."
    return several if len(counts) > 1 else f"Training: {counts[0][0]}."


def loss_spikes(losses: NDArray[np.float64]) -> list[int]:
    """Epochs, from 1, whose loss stands out above the running median of five."""
    if len(losses) < 5:
        return []
    apart = losses - pd.Series(losses).rolling(5, center=True, min_periods=3).median().to_numpy()
    spread = float(np.median(np.abs(apart)))
    return (np.flatnonzero((apart > _SPIKE * spread) & (apart > _LEAST_SPIKE * abs(losses[0]))) + 1).tolist()


def shuffling(labels: NDArray[np.int64], seed: int, epochs: int) -> tuple[float, float]:
    """Share of neighbours with one label in the orders of all epochs, made again from the seed, and its p.

    Of the first repeat.

    Two-sided, by the exact mean and variance of runs in a random order (Wald & Wolfowitz 1940, for any number of
    classes Barton & David 1957). ValueError where an order is no permutation or an epoch repeats the one before.
    """
    orders = np.stack([epoch_order(seed, 0, epoch, len(labels)) for epoch in range(1, epochs + 1)])
    if not (np.sort(orders, axis=1) == np.arange(len(labels))).all():
        raise ValueError("an epoch of the loader does not visit every slide once")
    if len(labels) > 8 and (orders[1:] == orders[:-1]).all(axis=1).any():
        raise ValueError("two epochs of the loader have the same order")
    n, counts = len(labels), np.bincount(labels).astype(float)
    equal = (labels[orders][:, 1:] == labels[orders][:, :-1]).sum(axis=1)
    squares, cubes = (counts**2).sum(), (counts**3).sum()
    mean = (squares - n) / n
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    z = (equal.mean() - mean) / np.sqrt(max(variance, 1e-12) / epochs)
    return float(equal.mean() / (n - 1)), float(2 * norm.sf(abs(z)))


def _pictures(curves: _Curves) -> list[Picture]:
    histories, verdicts = curves.histories, curves.verdicts
    highest = loss_axis(list(histories.values()))
    caption = "Loss by epoch, training (blue) and validation (orange); the dot is the epoch that was kept."
    return [
        Picture(
            f"Fold {k}: {verdicts[k].name}",
            caption,
            learning_curve(history, highest, curves.epochs).svg(verdicts[k].said),
        )
        for k, history in list(histories.items())[:_CURVES]
    ]


def _spike_slides(history: pd.DataFrame, spikes: list[int]) -> dict[int, list[str]]:
    """By epoch, the slides of the step with the highest loss; nothing for runs that did not keep them."""
    if "worst_step" not in history:
        return {}
    slides = history.set_index("epoch")["worst_step"].astype(str)
    return {epoch: slides[epoch].split() for epoch in spikes}


def _folds(curves: _Curves) -> Details:
    def said(k: str) -> str:
        spikes = curves.spikes[k]
        slides = _spike_slides(curves.histories[k], spikes)
        return "; ".join(f"{epoch}: {' '.join(slides.get(epoch, []))}".rstrip(": ") for epoch in spikes) or "none"

    rows = tuple((k, v.name, v.said, said(k)) for k, v in curves.verdicts.items())
    return Details("Learning curves", ("fold", "verdict", "why", "spikes in epochs, slides of the worst step"), rows)


def _buckets(inputs: Inputs, predictions: pd.DataFrame) -> Details:
    """Slides by label and prediction: the four buckets of two classes."""
    counts = pd.crosstab(predictions["label"], predictions["prediction"])
    classes = inputs.cohort.classes
    rows = []
    for label in classes:
        for predicted in classes:
            count = int(counts.get(predicted, pd.Series(dtype=int)).get(label, 0))
            of_label = int((predictions["label"] == label).sum())
            rows.append((label, predicted, str(count), f"{count / max(of_label, 1):.0%}"))
    return Details("Right and wrong", ("label", "predicted", "slides", "part of the label"), tuple(rows))


def _strips(folder: Path, predictions: pd.DataFrame) -> list[Picture]:
    """The patches that weighed most, of the slides that are surest right and surest wrong, where the run has them."""
    there = pictured_slides(folder)
    own = predictions[predictions["slide_id"].astype(str).isin(there)].drop_duplicates("slide_id")
    if own.empty:
        return []
    sure = own.apply(lambda row: row[f"prob_{row['prediction']}"], axis=1)
    right = own["label"] == own["prediction"]
    pictures = []
    for title, side in (("Surest and wrong", ~right), ("Surest and right", right)):
        chosen = own[side].assign(sure=sure[side]).sort_values("sure", ascending=False).head(_STRIPS)
        images = [Image.open(picture_path(folder, "patches", str(i))).convert("RGB") for i in chosen["slide_id"]]
        if not images:
            continue
        names = "; ".join(f"{r.slide_id} (label {r.label}, predicted {r.prediction})" for r in chosen.itertuples())
        pictures.append(
            Picture(title, f"Patches that weighed most, a row a slide: {names}.", image=sheet(images, 1), wide=True)
        )
    return pictures

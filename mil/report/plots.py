"""Pictures of a run: losses by fold, and the ROC curve of all out-of-fold predictions with its bootstrap band."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mil.metrics.bootstrap import Bootstrap, Floats, draw_weights, interval
from mil.metrics.classification import weighted_auroc
from mil.run.tables import kept_epoch
from tiling.jobs.atomic import atomic_file

_COLUMNS = 5
GRID = np.linspace(0, 1, 201)
_TRAIN, _VAL, _GREY = "#0072B2", "#D55E00", "#666666"  # told apart by colour-blind readers
_CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_curves(path: Path, histories: Sequence[pd.DataFrame]) -> None:
    """Training and validation loss by epoch, one panel a fold, the epoch that was kept marked."""
    columns = min(_COLUMNS, len(histories))
    rows = -(-len(histories) // columns)
    figure = Figure(figsize=(max(4.5, 2.8 * columns), 2.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(histories) :]:
        panel.set_visible(False)
    for number, (panel, history) in enumerate(zip(panels.flat, histories, strict=False), start=1):
        best = history.iloc[kept_epoch(history)]
        panel.plot(history["epoch"], history["train_loss"], color=_TRAIN, label="train")
        panel.plot(history["epoch"], history["val_loss"], color=_VAL, label="validation")
        panel.axvline(best["epoch"], color=_GREY, linestyle=":", linewidth=1)
        panel.plot(best["epoch"], best["val_loss"], "o", color=_VAL, label="kept epoch")
        panel.set_title(f"fold {number}: kept epoch {best['epoch']:.0f}", fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("loss", fontsize=9)
    _save(figure, path)


def plot_roc(
    path: Path, slides: pd.DataFrame, classes: Sequence[str], positive: int | None, bootstrap: Bootstrap
) -> None:
    """Pooled out-of-fold ROC of the positive class, or of each class against the rest, with 95 % bands."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    weights = draw_weights(slides["patient_id"].tolist(), bootstrap.draws, bootstrap.seed)
    chosen = range(len(classes)) if positive is None else [positive]
    for i in chosen:
        scores = slides[f"prob_{classes[i]}"].to_numpy(dtype=np.float64)
        truth = slides["label"].to_numpy() == classes[i]
        if truth.all() or not truth.any():
            continue
        auroc = interval(weighted_auroc(scores, truth, weights))
        curves = roc_curves(scores, truth, weights)
        low, high = np.nanpercentile(curves[1:], (2.5, 97.5), axis=0)
        colour = _CLASS_COLOURS[i % len(_CLASS_COLOURS)] if positive is None else _TRAIN
        text = f"{classes[i]}: AUROC {auroc['value']:.3f} ({auroc['low']:.3f}–{auroc['high']:.3f})"
        axes.fill_between(GRID, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(GRID, curves[0], color=colour, label=text)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.set_title("Out-of-fold predictions of all slides, 95 % band by patient", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    _save(figure, path)


def roc_curves(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Sensitivity (R, 201) on an even grid of 1 - specificity, for each row of weights (R, n); NaN if undefined."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each group of equal scores
    ordered = weights[:, order]
    true = (ordered * truth[order]).cumsum(axis=1)[:, last]
    false = (ordered * ~truth[order]).cumsum(axis=1)[:, last]
    curves = np.full((len(weights), len(GRID)), np.nan)
    for r in np.flatnonzero((true[:, -1] > 0) & (false[:, -1] > 0)):
        x, y = np.append(0, false[r] / false[r, -1]), np.append(0, true[r] / true[r, -1])
        curves[r] = np.interp(GRID, x, y)
    return curves


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})

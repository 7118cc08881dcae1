"""Finding: labels copied onto patches against multiple-instance learning, on the same patches, folds and steps."""

import dataclasses

import numpy as np
import pandas as pd
import torch

from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import Figure, Finding, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.probe import figure_of
from mil.diagnosis.numbers.witness import WitnessRate, sampled_patches, witness_rate
from mil.metrics.classification import evaluate, patch_accuracy
from mil.metrics.difference import Difference, auroc_difference
from mil.pages.chart import Chart
from mil.run.ensemble import load_head, predict_slide
from mil.training.config import TrainConfig
from mil.training.plan import plan_training
from mil.training.trainer import train_folds

KEY, TITLE, SHARE = "copied-labels", "Copied labels against MIL", 120
HEADS = ("patch-label-copy", "mean", "gated-abmil")
_PATCHES = 25_000  # in all that the heads are trained on
_STEPS = 150


def find(inputs: Inputs) -> Finding:
    cohort, config = inputs.cohort, inputs.config
    rng = np.random.default_rng(np.random.SeedSequence((inputs.seed, 11)))
    small = dataclasses.replace(cohort, features=tuple(sampled_patches(cohort, _PATCHES, rng)))
    tables: dict[str, pd.DataFrame] = {}
    numbers: dict[str, Figure] = {}
    for number, head in enumerate(HEADS):
        tables[head] = _predictions(small, inputs, head)
        figures = evaluate(tables[head], cohort.classes, cohort.positive, config.bootstrap, inputs.seed)
        numbers[f"{head}: AUROC of slides"] = figures["auroc"]
        numbers[f"{head}: balanced accuracy of slides"] = figures["balanced_accuracy"]
        right, patches = (tables[head][name].to_numpy() for name in ("correct_patches", "patches"))
        patients = tables[head]["patient_id"].tolist()
        patch_figure = patch_accuracy(patients, right, patches, config.bootstrap, inputs.seed)
        numbers[f"{head}: accuracy of patches, by copied labels"] = patch_figure
        inputs.progress(0.7 * (number + 1) / len(HEADS))
    best = max(HEADS[1:], key=lambda head: numbers[f"{head}: AUROC of slides"]["value"] or 0)
    gain = auroc_difference(
        tables[best], tables[HEADS[0]], cohort.classes, cohort.positive, config.bootstrap, inputs.seed
    )
    numbers[f"{best} less {HEADS[0]}: AUROC"] = figure_of(gain)
    rate = None
    if cohort.positive is not None:
        rate = witness_rate(
            cohort,
            cohort.positive,
            parts_of(inputs.folds),
            config.bootstrap,
            inputs.seed,
            lambda share: inputs.progress(0.7 + 0.3 * share),
        )
        numbers["witness rate"] = rate.rate
    severity, verdict, remedy = _judge(cohort, best, gain, rate)
    pictures = [_rate_chart(rate)] if rate else []
    evidence = {"patches_a_slide": int(np.median([len(own) for own in small.features]))}
    return Finding(KEY, TITLE, severity, verdict, remedy, numbers, pictures, evidence=evidence)


def _predictions(cohort: Cohort, inputs: Inputs, head: str) -> pd.DataFrame:
    """Out-of-fold predictions of slides, and how many patches have their slide's class by their own score."""
    folds, device = inputs.folds, torch.device("cpu")
    steps = max(1, -(-max(len(fold.train) for fold in folds) // TrainConfig().batch_slides))
    epochs = int(np.clip(_STEPS // steps, 8, 100))
    config = TrainConfig(head=head, epochs=epochs, seed=inputs.seed)
    plan = plan_training(cohort, folds, config, device)
    rows = []
    for group in plan.groups:
        trained = train_folds(cohort, group, config, device, lambda fold, values: None, plan)
        for fold, (checkpoint, _) in zip(group, trained, strict=True):
            model = load_head(checkpoint, device)
            for i in fold.test:
                made = predict_slide(model, cohort.features[i], device, cohort.task, checkpoint.calibration)
                rows.append(
                    {
                        "slide_id": cohort.slide_ids[i],
                        "patient_id": cohort.patient_ids[i],
                        "repeat": fold.repeat,
                        "label": cohort.classes[cohort.labels[i]],
                        **cohort.task.columns(made.answer, checkpoint.calibration),
                        "correct_patches": int((made.patch_logits.argmax(axis=1) == cohort.labels[i]).sum()),
                        "patches": len(made.patch_logits),
                    }
                )
    return pd.DataFrame(rows).sort_values(["repeat", "slide_id"], ignore_index=True)


def _judge(cohort: Cohort, best: str, gain: Difference, rate: WitnessRate | None) -> tuple[Severity, str, str]:
    noisy = ""
    if rate and cohort.positive is not None:
        value, low, high = (rate.rate[key] or 0.0 for key in ("value", "low", "high"))
        name = cohort.classes[cohort.positive]
        noisy = (
            f" About {value:.0%} ({low:.0%}–{high:.0%}) of the patches of {name} slides look unlike those of other "
            f"slides, so about {1 - value:.0%} of the labels copied onto them are wrong."
            if low > 0
            else f" At most {high:.0%} of the patches of {name} slides look unlike those of other slides, so at least "
            f"{1 - high:.0%} of the labels copied onto them are wrong."
        )
    if gain.low > 0 and gain.value >= 0.02:
        return (
            "look",
            f"{best} beats copied labels by {gain.value:.2f} of AUROC ({gain.low:.2f}–{gain.high:.2f}).{noisy}",
            f"Do not copy slide labels onto patches: train with --head {best}.",
        )
    if gain.high < 0:
        return (
            "fine",
            f"Copied labels do better here by {-gain.value:.2f} of AUROC ({-gain.high:.2f}–{-gain.low:.2f}).{noisy}",
            "Most patches show the label, or slides are few for a head with more weights; patch-label-copy is enough.",
        )
    return (
        "fine",
        f"MIL and copied labels are not told apart here ({gain.value:+.2f} of AUROC, "
        f"{gain.low:+.2f} to {gain.high:+.2f}).{noisy}",
        "More patients tell them apart. A low accuracy of patches is no fault of the model where few patches show the "
        "label: judge slides.",
    )


def _rate_chart(rate: WitnessRate) -> Picture:
    grid, negative, positive = rate.by_threshold
    ends = (float(grid[0]), float(max(grid[-1], grid[0] + 1e-6)))
    chart = Chart(ends, (0, 1), (420, 300), ("score: how unlike a negative slide", "share of patches below"))
    chart.line(grid, negative, "c0")
    chart.line(grid, positive, "c1")
    caption = (
        "Patches of negative slides (blue) and of positive slides (orange), out of fold. The lower orange lies under "
        "blue, the more patches of positive slides are of another kind."
    )
    return Picture("Patches of positive and negative slides", caption, chart.svg("Distribution of patch scores"))

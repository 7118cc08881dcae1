"""Finding: labels copied onto patches against multiple-instance learning, on the same patches, folds and steps."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import Figure, Finding, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.folds import parts_of
from mil.diagnosis.numbers.permutation import holm
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
_LEAST_GAIN = 0.02  # of AUROC, and
_LEAST_UNLIKE = 0.005  # of the patches, that are worth a word


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
    gains = {
        head: auroc_difference(
            tables[head], tables[HEADS[0]], cohort.classes, cohort.positive, config.bootstrap, inputs.seed
        )
        for head in HEADS[1:]
    }
    ps = _corrected(gains)
    numbers |= {f"{head} less {HEADS[0]}: AUROC": {**figure_of(gain), "p": ps[head]} for head, gain in gains.items()}
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
        name = cohort.classes[cohort.positive]
        numbers[f"patches of {name} slides that are seen to be unlike others"] = {"value": rate.seen}
        numbers[f"patches of {name} slides that are unlike others, at least (95 % sure)"] = {"value": rate.at_least}
    severity, verdict, remedy = _judge(gains, ps, _unlike(cohort, rate))
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


def _unlike(cohort: Cohort, rate: WitnessRate | None) -> str:
    """What the scores of patches say of copied labels; patches that they do not tell apart may differ all the same."""
    if rate is None or cohort.positive is None:
        return ""
    name = cohort.classes[cohort.positive]
    if rate.at_least < _LEAST_UNLIKE:
        return f" No patches of {name} slides are surely unlike those of other slides; some may be, unseen by this."
    return (
        f" At least {rate.at_least:.0%} of the patches of {name} slides are unlike those of other slides, so at most "
        f"{1 - rate.at_least:.0%} are like them, to which a copied label is wrong."
    )


def _corrected(gains: Mapping[str, Difference]) -> dict[str, float]:
    """p of each, for their number (Holm 1979)."""
    return dict(zip(gains, holm(np.array([gain.p for gain in gains.values()])).tolist(), strict=True))


def _judge(gains: Mapping[str, Difference], ps: Mapping[str, float], unlike: str) -> tuple[Severity, str, str]:
    """gains: of each MIL head over copied labels. ps: theirs, corrected."""
    better = {head: gain for head, gain in gains.items() if gain.value >= _LEAST_GAIN and ps[head] < 0.05}
    each = " and ".join(
        f"{head} {gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f}; p = {ps[head]:.3f})"
        for head, gain in (better or gains).items()
    )
    if better:
        return (
            "look",
            f"MIL beats copied labels, by AUROC: {each}.{unlike}",
            f"Do not copy slide labels onto patches: train with --head {' or '.join(better)}.",
        )
    if all(gain.value < 0 and ps[head] < 0.05 for head, gain in gains.items()):
        return (
            "fine",
            f"Copied labels do better here than MIL, by AUROC: {each}.{unlike}",
            "Most patches show the label, or slides are few for a head with more weights; patch-label-copy is enough.",
        )
    return (
        "fine",
        f"MIL is not shown to do better than copied labels here, by AUROC: {each}.{unlike}",
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

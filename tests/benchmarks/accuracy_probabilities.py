"""Are probabilities true? Out-of-fold probabilities of `train-mil` as it is, where 5, 10, 50 and 90 % are positive.

Generated cohorts of 300 slides with 40 patches of 24 features; a tenth of a positive slide's patches show it, slides
differ from each other as well. Printed, means over SEEDS cohorts: the mean probability (true: the prevalence), the
Brier score beside that of always saying the prevalence, the slope of calibration (1: neither too sure nor too shy;
Cox 1958), the AUROC over all folds and the mean of the folds' own.

    python tests/benchmarks/accuracy_probabilities.py [HEAD ...]      default gated-abmil mean bag-stats
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mil.run.tables import read_metrics, read_predictions
from mil.training.command import train_mil
from mil.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # the packages before the folders of their tests
from planted_cohorts import write_features

PREVALENCES, SEEDS = (0.05, 0.1, 0.5, 0.9), (10, 11)  # the priors of the calibration were chosen on others
SLIDES, PATCHES, DIM, WITNESS, SHIFT = 300, 40, 24, 0.1, 3.5


def make_cohort(folder: Path, prevalence: float, seed: int, slides: int = SLIDES) -> Path:
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=DIM)
    direction *= SHIFT / np.linalg.norm(direction)
    positive = np.arange(slides) < round(slides * prevalence)
    folder.mkdir()
    for i, shows in enumerate(positive):
        patches = rng.normal(size=(PATCHES, DIM)) + 0.5 * rng.normal(size=DIM)
        if shows:
            patches[: max(1, rng.binomial(PATCHES, WITNESS))] += direction
        write_features(folder, f"s{i:03d}", patches)
    table = pd.DataFrame({"slide_id": [f"s{i:03d}" for i in range(slides)], "tumour": np.where(positive, "yes", "no")})
    table.to_csv(folder / "slides.csv", index=False)
    return folder / "slides.csv"


def judged(head: str, prevalence: float, seed: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        table, run = make_cohort(Path(folder, "features"), prevalence, seed), Path(folder, "run")
        train_mil(table.parent, table, "tumour", run, TrainConfig(head=head, folds=3, bootstrap=100))
        predictions, metrics = read_predictions(run), read_metrics(run)
    p, truth = predictions["prob_yes"].to_numpy(), predictions["label"].eq("yes").to_numpy()
    odds = np.log(p / (1 - p)).clip(-20, 20)[:, None]
    slope = LogisticRegression(C=np.inf).fit(odds, truth).coef_[0, 0]
    of_folds = np.mean([fold["auroc"]["value"] for fold in metrics["folds"]])
    constant = truth.mean() * (1 - truth.mean())
    return [p.mean(), np.square(p - truth).mean(), constant, slope, roc_auc_score(truth, p), of_folds]


def main(heads: tuple[str, ...] = ("gated-abmil", "mean", "bag-stats")) -> None:
    print("| head | prevalence | mean probability | Brier | of the prevalence | slope | AUROC | of the folds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for head in heads:
        for prevalence in PREVALENCES:
            mean = np.mean([judged(head, prevalence, seed) for seed in SEEDS], axis=0)
            figures = " | ".join(f"{value:.3f}" for value in mean)
            print(f"| `{head}` | {prevalence:.0%} | {figures} |", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ("gated-abmil", "mean", "bag-stats"))

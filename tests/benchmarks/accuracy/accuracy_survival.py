"""How far a model's out-of-fold C-index lies below that of the true risk, which shows in 5 % of a slide's patches.

Generated cohorts of 300 slides, one a patient, of 60 patches × 8: half have two more log hazard and show it in three
patches, four deviations away. Harrell's C, three folds with one model each.

    python tests/benchmarks/accuracy/accuracy_survival.py [--seeds 3] [--slides 300] [--head gated-abmil]
        [--loss full-likelihood|discrete-time]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from mil import train
from mil.metrics.survival import Followed, concordance

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[3]))  # the packages before the folders of their tests
from planted_cohorts import write_features

PATCHES, DIM, SHOWN, EFFECT = 60, 8, 3, 2.0


def c_indices(folder: Path, slides: int, head: str, loss: str, seed: int) -> tuple[float, float]:
    """Of the model, and of the true risk."""
    rng, rows, risks = np.random.default_rng(seed), [], EFFECT * (np.arange(slides) % 2)
    for i, risk in enumerate(risks):
        features = rng.normal(size=(PATCHES, DIM))
        features[: SHOWN * int(risk > 0), 2] += 4
        write_features(folder / "f", f"s{i:03d}", rng.permutation(features))
        died, left = 20 * rng.exponential(np.exp(-risk)), rng.uniform(2, 60)
        rows.append((f"s{i:03d}", round(min(died, left), 1), int(died <= left)))
    table = pd.DataFrame(rows, columns=["slide_id", "months", "died"])
    told = dict(task="survival", event="died", head=head, loss=loss, seed=seed, folds=3, inner_folds=0, bootstrap=100)
    run = train(folder / "f", table, "months", folder / "run", device="cpu", **told)
    followed = Followed(table["months"].to_numpy(), table["died"].to_numpy() > 0)
    oracle = concordance(followed, risks, np.ones((1, slides)), np.inf)[0][0]
    return run.metrics["slide"]["c_index"]["value"], float(oracle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slides", type=int, default=300)
    parser.add_argument("--head", default="gated-abmil")
    parser.add_argument("--loss", default="auto")
    told = parser.parse_args()
    print("| seed | C-index, model | true risk | lost |\n| --- | --- | --- | --- |")
    for seed in range(told.seeds):
        with tempfile.TemporaryDirectory() as folder:
            own, oracle = c_indices(Path(folder), told.slides, told.head, told.loss, seed)
        print(f"| {seed} | {own:.3f} | {oracle:.3f} | {oracle - own:+.3f} |", flush=True)


if __name__ == "__main__":
    main()

"""How often a run is said to have found something: in nothing, where it must be 5 % or less, and in little.

Cohorts of Gaussian features, half of the patients positive, their mean apart by `effect` deviations in the first
feature; cross-validated in stratified folds. Beside the test of mil.metrics.found, the share of cohorts with p ≤ 0.05
of one that takes folds for independent (van Elteren), and of the Cauchy combination of the folds' own p values.

    python tests/benchmarks/accuracy/accuracy_found.py                  the table; about ten minutes
    python tests/benchmarks/accuracy/accuracy_found.py --cohorts 100    a faster, coarser one
"""

import argparse
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from mil.metrics.found import FALSE_ALARMS, found

Floats = NDArray[np.float64]
Model = Callable[[Floats, NDArray[np.bool_], Floats], Floats]  # features and labels to learn from, features -> scores
DIM = 20


def difference_of_means(x: Floats, y: NDArray[np.bool_], new: Floats) -> Floats:
    return new @ (x[y].mean(0) - x[~y].mean(0))


def best_feature(x: Floats, y: NDArray[np.bool_], new: Floats) -> Floats:
    way = x[y].mean(0) - x[~y].mean(0)
    best = np.abs(way).argmax()
    return new[:, best] * way[best]


def logistic_regression(x: Floats, y: NDArray[np.bool_], new: Floats) -> Floats:
    return LogisticRegression(C=0.1).fit(x, y).decision_function(new)


def five_neighbours(x: Floats, y: NDArray[np.bool_], new: Floats) -> Floats:
    return KNeighborsClassifier(5, weights="distance").fit(x, y).predict_proba(new)[:, 1]


MODELS: dict[str, Model] = {
    "difference-of-means": difference_of_means,
    "logistic-regression": logistic_regression,
    "five-neighbours": five_neighbours,
    "best-feature": best_feature,
}


def cohort(model: Model, patients: int, effect: float, rng: np.random.Generator) -> pd.DataFrame:
    """Predictions out of five folds."""
    positive, x = np.arange(patients) % 2 == 1, rng.standard_normal((patients, DIM))
    x[:, 0] += effect * positive
    rows = []
    splits = StratifiedKFold(5, shuffle=True, random_state=int(rng.integers(1 << 31))).split(x, positive)
    for k, (train, test) in enumerate(splits):
        scores = model(x[train], positive[train], x[test])
        rows.append(
            pd.DataFrame({"repeat": 0, "fold": k, "patient_id": test, "label": positive[test], "score": scores})
        )
    return pd.concat(rows)


def by_cauchy(table: pd.DataFrame) -> bool:
    """Liu and Xie, Journal of the American Statistical Association 115, 2020."""
    p_values = [
        mannwhitneyu(fold.loc[fold["label"], "score"], fold.loc[~fold["label"], "score"], alternative="greater").pvalue
        for _, fold in table.groupby("fold")
    ]
    return bool(0.5 - np.arctan(np.tan((0.5 - np.minimum(p_values, 0.99)) * np.pi).mean()) / np.pi <= FALSE_ALARMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=500)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    print("| model | patients | effect | found | folds taken for independent | Cauchy combination |")
    for name in given.models:
        for patients, effect in ((28, 0.0), (80, 0.0), (28, 1.5), (28, 2.0), (80, 1.0)):
            rng = np.random.default_rng(0)
            said = []
            for _ in range(given.cohorts):
                table = cohort(MODELS[name], patients, effect, rng)
                with patch("mil.metrics.found._DEPENDENCE", 1):
                    independent = found(table, "score", True)["found"]
                said.append((found(table, "score", True)["found"], independent, by_cauchy(table)))
            cells = (f"{100 * share:.1f} %" for share in np.mean(said, axis=0))
            print(f"| {name} | {patients} | {effect} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()

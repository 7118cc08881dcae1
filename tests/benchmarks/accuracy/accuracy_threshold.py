"""Where to cut calibrated probabilities: at the positive class's share, or where a calibration part is cut best?

Drawn log-odds of two classes, twice too sure, calibrated on n slides as `train-mil` does, cut, and judged by balanced
accuracy on 6,000 others: with normal values of equal spread, where log-odds are true after calibration, and with a
heavy tail in the positive class, where no temperature makes them so. Means over prevalences, distances and 40 draws.

    python tests/benchmarks/accuracy/accuracy_threshold.py
"""

import itertools

import numpy as np
from scipy.special import expit

from mil.tasks.calibration import calibrated, class_shares, fit_calibration

DRAWS, TOO_SURE = 40, 2.0


def draw(rng: np.random.Generator, n: int, prevalence: float, distance: float, heavy: bool) -> tuple[np.ndarray, ...]:
    """Uncalibrated probabilities (n, 2) and labels (n,), which hold both classes."""
    labels = (rng.random(n) < prevalence).astype(int)
    labels[:2] = 0, 1
    spread = np.where(labels == 1, rng.standard_t(3, size=n), 0.6 * rng.normal(size=n)) if heavy else rng.normal(size=n)
    p = expit(TOO_SURE * distance * (distance * (labels - 0.5) + spread))
    return np.stack([1 - p, p], axis=1), labels


def balanced(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    called = scores >= threshold
    return (called[labels == 1].mean() + (~called[labels == 0]).mean()) / 2


def best_cut(scores: np.ndarray, labels: np.ndarray) -> float:
    levels = np.unique(scores)
    cuts = (levels[:-1] + levels[1:]) / 2
    found = np.array([balanced(scores, labels, cut) for cut in cuts])
    best = cuts[np.isclose(found, found.max())]
    return float(best[np.abs(best - 0.5).argmin()])


def main() -> None:
    rng = np.random.default_rng(0)
    print("| calibrated on | log-odds | cut at the share | cut chosen |\n| --- | --- | --- | --- |")
    for n, heavy in itertools.product((16, 40, 80, 200), (False, True)):
        found = []
        for prevalence, distance, _ in itertools.product((0.15, 0.5), (0.8, 1.6, 3), range(DRAWS)):
            probabilities, labels = draw(rng, n, prevalence, distance, heavy)
            shares = class_shares(labels, 2)
            fitted = fit_calibration(probabilities, labels, shares)
            cuts = shares[1], best_cut(calibrated(probabilities, *fitted)[:, 1], labels)
            others, truth = draw(rng, 6000, prevalence, distance, heavy)
            found.append([balanced(calibrated(others, *fitted)[:, 1], truth, cut) for cut in cuts])
        share, chosen = np.mean(found, axis=0)
        print(f"| {n} | {'heavy tail' if heavy else 'normal'} | {share:.3f} | {chosen:.3f} |", flush=True)


if __name__ == "__main__":
    main()

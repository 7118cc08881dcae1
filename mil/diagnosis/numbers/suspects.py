"""Which slides may have a wrong label, and how many.

Ranking and count are confident learning's (Northcutt, Jiang & Chuang, JAIR 70, 2021): out-of-fold probabilities p; a
class's threshold is the mean p of that class over slides labelled so; a slide that reaches the threshold of another
class than its label's is counted for the most probable of those; slides are ranked by the margin of their own class.
Training without the counted slides, which each training part finds by a cross-validation of its own, gives a second
model that wrong labels pull at less.

The count alone cannot tell a wrong label from a weak model. So the rate is estimated by a second look: the log odds of
slides labelled right are taken as normal in each class, and a wrong label as a draw from the other class's; a weak
model gives two overlapping normals and no second hump. Two classes only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from mil.diagnosis.numbers.folds import Parts
from mil.metrics.bootstrap import draw_weights, interval
from mil.tasks.linear_probe import fit_probe, probe_probabilities, standardised

Floats = NDArray[np.float64]
_ROUNDS = 60
_CLEANINGS, _INNER = 2, 5


@dataclass(frozen=True)
class Suspects:
    """order (S,): positions, most suspicious first; margins (S,) p of the label less that of the best other class."""

    order: NDArray[np.int64]
    margins: Floats
    counted: NDArray[np.bool_]  # (S,) off the diagonal of the confident joint
    other: NDArray[np.int64]  # (S,) the best other class


def confident_learning(probabilities: Floats, labels: NDArray[np.int64]) -> Suspects:
    """probabilities (S, C) out of fold, labels (S,)."""
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    margins = own - others.max(axis=1)
    thresholds = np.array(
        [probabilities[labels == c, c].mean() if (labels == c).any() else np.inf for c in range(probabilities.shape[1])]
    )
    reached = np.where(probabilities >= thresholds, probabilities, -np.inf)
    counted = (reached.max(axis=1) > -np.inf) & (reached.argmax(axis=1) != labels)
    return Suspects(np.argsort(margins, kind="stable"), margins, counted, others.argmax(axis=1))


def cleaned_probabilities(
    vectors: Floats, labels: NDArray[np.int64], patients: NDArray[np.str_], parts: Parts
) -> tuple[Floats, Floats]:
    """Out-of-fold probabilities (S, C) of the probe, trained on all slides of each part and without suspects.

    vectors (S, D), labels (S,), parts (train, test) by patient; NaN where a slide is in no test part.
    """
    plain, cleaned = (np.full((len(labels), labels.max() + 1), np.nan) for _ in range(2))
    for train, test in parts:
        scaled = standardised(vectors, train)
        plain[test] = _fitted(scaled, labels, train, test)
        kept = train
        for _ in range(_CLEANINGS):
            inner = np.zeros((len(train), plain.shape[1]))
            for _, held in GroupKFold(min(_INNER, len(set(patients[train])))).split(train, groups=patients[train]):
                inner[held] = _fitted(scaled, labels, np.setdiff1d(kept, train[held]), train[held])
            kept = train[~confident_learning(inner, labels[train]).counted]
        cleaned[test] = _fitted(scaled, labels, kept, test)
    return plain, cleaned


def _fitted(scaled: Floats, labels: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]) -> Floats:
    """Probabilities (T, C) of the test slides."""
    classes = labels.max() + 1
    if len(set(labels[train])) < 2:
        return np.tile(np.eye(classes)[labels[train[0]]], (len(test), 1))
    return probe_probabilities(fit_probe(scaled[train], labels[train]), scaled[test], classes)


def wrong_share(
    log_odds: Floats, truth: NDArray[np.bool_], patients: NDArray[np.str_], draws: int, seed: int
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Share of labels `truth` (S,) that are wrong, by log_odds (S,), and how many standard deviations the two normals
    lie apart, with intervals over patients. Below about 2.5 the share says little.

    EM of two normals of one variance, started from medians; a component is allowed no share above one half.
    """
    weights = draw_weights(patients.tolist(), draws, seed)  # (R, S)
    weights = weights[[0, *np.flatnonzero((weights[1:] @ truth > 0) & (weights[1:] @ ~truth > 0)) + 1]]
    spread = log_odds.std() or 1.0
    high, low = (np.full(len(weights), np.median(log_odds[side])) for side in (truth, ~truth))
    variance, wrong = np.full(len(weights), spread**2 / 2), np.full((len(weights), 2), 0.1)  # of truth, of the others
    for _ in range(_ROUNDS):
        like_high, like_low = (
            np.exp(-((log_odds - centre[:, None]) ** 2) / (2 * variance[:, None])) + 1e-300 for centre in (high, low)
        )  # (R, S)
        prior = np.where(truth, 1 - wrong[:, :1], wrong[:, 1:])  # of being truly high
        is_high = prior * like_high / (prior * like_high + (1 - prior) * like_low)
        up, down = weights * is_high, weights * (1 - is_high)
        high, low = ((part @ log_odds) / np.maximum(part.sum(axis=1), 1e-9) for part in (up, down))
        squares = up * (log_odds - high[:, None]) ** 2 + down * (log_odds - low[:, None]) ** 2
        variance = np.maximum(squares.sum(axis=1) / weights.sum(axis=1), 1e-6 * spread**2)
        shares = [(down @ truth) / (weights @ truth), (up @ ~truth) / (weights @ ~truth)]
        wrong = np.minimum(np.stack(shares, axis=1), 0.5)
    share = ((down @ truth) + (up @ ~truth)) / weights.sum(axis=1)
    return dict(interval(share)), dict(interval((high - low) / np.sqrt(variance)))

"""The probe: logistic regression on one vector a slide, the one linear model that everything is held against.

Standardised on the slides it is fitted with, classes balanced, a ridge penalty. The baseline of every run, the AUROCs
of diagnose-cohort, its list of wrong labels and what a slide adds to the loss are all of this model.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn: small is strong
PENALTY = 1e-2  # where there is nothing to choose it on: scikit-learn's own is far too weak for so few slides


def standardised(vectors: Floats, on: NDArray[np.int64]) -> Floats:
    """(S, D) with mean 0 and deviation 1 over the slides `on`; a feature that is constant there becomes 0 there."""
    scaled: Floats = StandardScaler().fit(vectors[on]).transform(vectors)
    return scaled


def fit_probe(scaled: Floats, labels: NDArray[np.int64], penalty: float = PENALTY) -> LogisticRegression:
    """scaled (n, D) from `standardised`, labels (n,). ValueError where they are all the same."""
    return LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000).fit(scaled, labels)


def probe_probabilities(model: LogisticRegression, scaled: Floats, classes: int) -> Floats:
    """(n, D) -> (n, C); 0 for a class that the model was not shown."""
    found = np.zeros((len(scaled), classes))
    found[:, model.classes_] = model.predict_proba(scaled)
    return found


def chosen_probe(
    vectors: Floats, labels: NDArray[np.int64], held_out: tuple[Floats, NDArray[np.int64]], classes: int
) -> Callable[[Floats], Floats]:
    """Probabilities (n, C) for vectors (n, D), by the probe of vectors (S, D) and labels (S,).

    Its penalty is the one with the lowest loss on the held-out part, `PENALTY` where that is empty.
    """
    scaler = StandardScaler().fit(vectors)

    def answers(model: LogisticRegression, of: Floats) -> Floats:
        return probe_probabilities(model, scaler.transform(of), classes)

    scaled = scaler.transform(vectors)
    if not len(held_out[1]):
        return partial(answers, fit_probe(scaled, labels))
    fitted = [fit_probe(scaled, labels, penalty) for penalty in PENALTIES]
    rows, smallest = np.arange(len(held_out[1])), np.finfo(np.float64).eps
    own = [answers(model, held_out[0])[rows, held_out[1]] for model in fitted]  # probabilities of the label
    return partial(answers, fitted[int(np.argmax([np.log(np.maximum(of, smallest)).mean() for of in own]))])

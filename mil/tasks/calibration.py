"""From a head's probabilities to true ones: logits are divided by a temperature T, then shifted by a bias a class.

Training weighs all classes the same, so a head speaks as if each made up the same share of the slides. With the shares
π_c of the training part, b_c = log(C π_c) makes that the cohort's own (Saerens et al., "Adjusting the outputs of a
classifier to new a priori probabilities", Neural Computation 2002). Temperature (Guo et al., "On calibration of modern
neural networks", ICML 2017) and bias are then fitted to slides that no weight was fitted to. Trees are shy and networks
too sure, so T may lie on both sides of 1; a normal prior on log T holds it there as long as slides are few, since a
small part that is all right would ask for T near 0, and certainty. The bias is as good as free: only so is the mean
probability the share of the class, in a fold as in all of them.

The order of a model's slides by log-odds, and so its AUROC, never changes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Floats = NDArray[np.float64]
LOG_T_SD, BIAS_SD = 1.0, 2.0  # of the priors; half of the first gave nearly the same on generated cohorts
LARGEST_LOG_T, LARGEST_SHIFT = np.log(20.0), 6.0


def class_shares(labels: NDArray[np.int64], classes: int) -> Floats:
    """(C,) share of each class among labels (n,) of a training part, which has them all."""
    shares: Floats = np.bincount(labels, minlength=classes) / len(labels)
    return shares


def fit_calibration(probabilities: Floats, labels: NDArray[np.int64], shares: Floats) -> tuple[float, Floats]:
    """T from 1/20 to 20 and bias (C,), for probabilities (n, C) and labels (n,) of slides that no weight was fitted to.

    shares: (C,) of the classes in the training part. For n = 0, 1 and the bias that follows from the shares.
    """
    expected = np.log(len(shares) * shares)
    if not len(labels):
        return 1.0, expected
    logits, own = _logits(probabilities), (np.arange(len(labels)), labels)

    def loss(parameters: Floats) -> float:
        log_t, moved = parameters[0], parameters[1:]
        likelihood = log_softmax(logits / np.exp(log_t) + expected + moved, axis=1)[own].sum()
        return float(0.5 * (log_t / LOG_T_SD) ** 2 + 0.5 * np.square(moved / BIAS_SD).sum() - likelihood)

    bounds = [(-LARGEST_LOG_T, LARGEST_LOG_T), *[(-LARGEST_SHIFT, LARGEST_SHIFT)] * len(shares)]
    found = minimize(loss, np.zeros(1 + len(shares)), bounds=bounds, method="L-BFGS-B").x
    return float(np.exp(found[0])), expected + found[1:]


def calibrated(probabilities: Floats, temperature: float, bias: Floats) -> Floats:
    """Probabilities (…, C) with their logits divided by the temperature, plus the bias (C,)."""
    if temperature == 1 and not bias.any():
        return probabilities
    scaled: Floats = np.exp(log_softmax(_logits(probabilities) / temperature + bias, axis=-1))
    return scaled


def _logits(probabilities: Floats) -> Floats:
    logits: Floats = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return logits

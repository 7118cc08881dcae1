"""The strong plain baseline: statistics of a bag's features into classical classifiers of scikit-learn.

A slide becomes the mean, minimum, maximum and standard deviation of its patches, 4 D numbers. Extremely randomised
trees (Geurts, Ernst, Wehenkel, Machine Learning 2006), a support vector machine with RBF kernel and logistic regression
are fitted to them, and weighed by what they said in a cross-validation by patient within the training part
(mil.heads.stacking), which needs no slide of validation or test. The penalties of machine and regression are those with
the lowest log loss there, after calibration by logistic regression (Platt, 1999), by which the machine's values become
probabilities too.

What is fitted is stored as plain tensors and computed from these, never as a pickle. Attention is uniform, and
`patch_logits` are NaN: a bag of one patch, whose deviation is 0 and whose extremes are its mean, lies far from all that
was learned from, so what the model says of it is no map.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from mil.heads.bags import Bags
from mil.heads.head import Fitted, HeadShape, MilOutput, OwnRecipe, TrainingSlides
from mil.heads.stacking import stack
from tiling.jobs.errors import RequestError

_PENALTIES = {"trees": (0.0,), "svm": (1.0, 10.0), "linear": (1e-3, 1e-2, 1e-1)}  # C of scikit-learn: small is strong
_TREES = 300
_PARTS = 5  # of the cross-validation
_LEAST = 1e-6  # probability that a logarithm is taken of
_TENSORS = (
    *("centre", "scale"),
    *("split", "threshold", "left", "right", "leaf"),  # trees
    *("vectors", "dual", "intercept", "gamma", "platt"),  # svm
    "logistic",  # linear
    *("factors", "offset"),  # (3,) of their log-probabilities, and (C,)
)


class _Judged(NamedTuple):
    """A classifier on slides that it was not fitted to."""

    loss: float
    penalty: float
    values: NDArray[np.float64]  # (S, machines) margins, else probabilities (S, C)
    probabilities: NDArray[np.float64]  # (S, C)


class BagStats(OwnRecipe):
    """bags (ΣN, D) -> logits (B, C), attention (ΣN,), patch_logits (ΣN, C). It is fitted on the CPU."""

    for_classes_alone = True

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.n_classes = shape.n_classes
        for name in _TENSORS:
            self.register_buffer(name, torch.empty(0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in _TENSORS:  # whose shapes depend on the slides that were fitted
            self.register_buffer(name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, bags: Bags) -> MilOutput:
        patches = self.standardise(bags)
        sizes = bags.sizes
        logits = self._log_probabilities(torch.stack([statistics(of_bag) for of_bag in patches.split(sizes)]))
        patch_logits = patches.new_full((len(patches), self.n_classes), torch.nan)
        attention = torch.cat([patches.new_full((n,), 1 / n) for n in sizes])
        return MilOutput(logits, attention, patch_logits)

    @torch.no_grad()
    def fit(self, slides: TrainingSlides, positive: int | None, rng: np.random.Generator) -> Fitted:
        """The loss is that of all classifiers together in the cross-validation, balanced between classes.

        RequestError if a class has a single patient, as then there is none.
        """
        device = self.device
        bags = [self.standardise(Bags(f.to(device), torch.tensor([0, len(f)]))) for f in slides.features]
        x = torch.stack([statistics(bag) for bag in bags]).cpu().numpy()
        scaler = StandardScaler().fit(x)
        x = scaler.transform(x).astype(np.float32)
        y, seed = slides.labels, int(rng.integers(1 << 31))
        parts = _parts(slides, seed)
        best = {
            kind: min(
                (_judged(kind, penalty, x, y, parts, seed) for penalty in penalties), key=lambda tried: tried.loss
            )
            for kind, penalties in _PENALTIES.items()
        }
        trees, machines, linear = (_classifier(kind, of.penalty, seed).fit(x, y) for kind, of in best.items())
        stacked, logits = stack([of.probabilities for of in best.values()], y)
        values: dict[str, NDArray[Any]] = {
            **{"centre": scaler.mean_, "scale": scaler.scale_, "factors": stacked.factors, "offset": stacked.offset},
            **_trees(trees),
            **_machines(machines),
            "platt": _weights(_platt(best["svm"].values, y), self.n_classes),
            "logistic": _weights(linear, self.n_classes),
        }
        for name in _TENSORS:
            self.register_buffer(name, torch.from_numpy(values[name]).to(device))
        held_out = log_softmax(logits, axis=1)
        loss = log_loss(y, np.exp(held_out), sample_weight=(len(y) / np.bincount(y))[y])
        return Fitted(float(loss), torch.from_numpy(held_out))

    def _log_probabilities(self, x: Tensor) -> Tensor:
        """Statistics (n, 4 D) -> (n, C), in the precision of the features' mean."""
        x = ((x.double() - self.get_buffer("centre")) / self.get_buffer("scale")).float()
        each = torch.stack(self._by_kind(x)).clamp_min(_LEAST).log()  # (3, n, C)
        logits: Tensor = torch.tensordot(self.get_buffer("factors"), each, dims=1) + self.get_buffer("offset")
        return logits.log_softmax(1).to(self.get_buffer("mean").dtype)

    def _by_kind(self, x: Tensor) -> list[Tensor]:
        """(n, 4 D) -> probabilities (n, C) float64 by trees, svm and linear."""
        svm = _logistic(self._margins(x), self.get_buffer("platt"))
        return [self._by_trees(x), svm, _logistic(x.double(), self.get_buffer("logistic"))]

    def _by_trees(self, x: Tensor) -> Tensor:
        """(n, 4 D) float32 -> (n, C) float64, the mean over trees of the leaf that each row falls into."""
        split, threshold = self.get_buffer("split").long(), self.get_buffer("threshold")  # (T, nodes)
        left, right = self.get_buffer("left").long(), self.get_buffer("right").long()
        tree = torch.arange(len(split), device=x.device)
        row = torch.arange(len(x), device=x.device).unsqueeze(1)
        node = torch.zeros(len(x), len(split), dtype=torch.int64, device=x.device)  # (n, T)
        while True:
            feature = split[tree, node]
            inside = feature >= 0
            if not inside.any():
                return self.get_buffer("leaf")[tree, node].mean(1)
            goes_left = x[row, feature.clamp_min(0)].double() <= threshold[tree, node]
            node = torch.where(inside, torch.where(goes_left, left[tree, node], right[tree, node]), node)

    def _margins(self, x: Tensor) -> Tensor:
        """(n, 4 D) -> (n, machines) float64: one machine for two classes, else one a class."""
        vectors, x = self.get_buffer("vectors"), x.double()
        distance = x.square().sum(1, keepdim=True) + vectors.square().sum(1) - 2 * x @ vectors.T
        kernel = torch.exp(-self.get_buffer("gamma")[:, None, None] * distance)  # (machines, n, vectors)
        return (kernel @ self.get_buffer("dual").unsqueeze(2)).squeeze(2).T + self.get_buffer("intercept")


def statistics(patches: Tensor) -> Tensor:
    """(N, D) -> (4 D,): mean, minimum, maximum, standard deviation (0 for N = 1)."""
    return torch.cat([patches.mean(0), patches.amin(0), patches.amax(0), patches.std(0, correction=0)])


def _classifier(kind: str, penalty: float, seed: int) -> Any:
    if kind == "trees":
        return ExtraTreesClassifier(_TREES, class_weight="balanced", random_state=seed)
    if kind == "svm":
        return OneVsRestClassifier(SVC(C=penalty, class_weight="balanced"))
    return LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)


def _judged(
    kind: str, penalty: float, x: NDArray[np.float32], y: NDArray[np.int64], parts: Sequence[Any], seed: int
) -> _Judged:
    held_out: list[NDArray[np.float64]] = []
    rows = np.concatenate([test for _, test in parts])
    for train, test in parts:
        model = _classifier(kind, penalty, seed).fit(x[train], y[train])
        values = model.decision_function(x[test]) if kind == "svm" else model.predict_proba(x[test])
        held_out.append(np.asarray(values, dtype=np.float64).reshape(len(test), -1))
    values = np.concatenate(held_out)[np.argsort(rows)]
    probabilities = np.clip(_platt(values, y).predict_proba(values) if kind == "svm" else values, _LEAST, 1)
    probabilities /= probabilities.sum(1, keepdims=True)
    scores = values if kind == "svm" else np.log(probabilities)
    calibrated = _platt(scores, y).predict_proba(scores)
    weights = (len(y) / np.bincount(y))[y]
    return _Judged(float(log_loss(y, calibrated, sample_weight=weights)), penalty, values, probabilities)


def _platt(margins: NDArray[np.float64], y: NDArray[np.int64]) -> LogisticRegression:
    return LogisticRegression(class_weight="balanced", max_iter=2000).fit(margins, y)


def _logistic(x: Tensor, weights: Tensor) -> Tensor:
    """(n, F) and (C, F + 1), the intercept last -> probabilities (n, C)."""
    return (x @ weights[:, :-1].T + weights[:, -1]).softmax(1)


def _weights(model: LogisticRegression, n_classes: int) -> NDArray[np.float64]:
    """(C, F + 1): the logit of each class, the intercept last."""
    own = np.column_stack([model.coef_, model.intercept_]).astype(np.float64)
    weights: NDArray[np.float64] = np.concatenate([np.zeros_like(own), own]) if n_classes == 2 else own
    return weights


def _trees(forest: ExtraTreesClassifier) -> dict[str, NDArray[Any]]:
    """All trees in arrays (T, nodes), shorter ones filled up with nodes that nothing reaches; split is -1 in a leaf."""
    trees = [tree.tree_ for tree in forest.estimators_]
    nodes = max(tree.node_count for tree in trees)

    def stack(name: str, fill: float, dtype: Any) -> NDArray[Any]:
        values = np.full((len(trees), nodes), fill, dtype)
        for row, tree in zip(values, trees, strict=True):
            row[: tree.node_count] = getattr(tree, name)
        return values

    leaf = np.zeros((len(trees), nodes, forest.n_classes_))
    for values, tree in zip(leaf, trees, strict=True):
        values[: tree.node_count] = tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)
    return {
        "split": stack("feature", -1, np.int32),
        "threshold": stack("threshold", 0, np.float64),
        "left": stack("children_left", 0, np.int32),
        "right": stack("children_right", 0, np.int32),
        "leaf": leaf,
    }


def _machines(fitted: OneVsRestClassifier) -> dict[str, NDArray[Any]]:
    """Support vectors of all machines together (V, 4 D), and what each machine (M, V) makes of them."""
    machines = fitted.estimators_
    dual = np.zeros((len(machines), sum(len(m.support_vectors_) for m in machines)))
    end = 0
    for row, machine in zip(dual, machines, strict=True):
        row[end : end + len(machine.support_vectors_)] = machine.dual_coef_[0]
        end += len(machine.support_vectors_)
    return {
        "vectors": np.concatenate([m.support_vectors_ for m in machines]),
        "dual": dual,
        "intercept": np.array([m.intercept_[0] for m in machines]),
        "gamma": np.array([m._gamma for m in machines]),
    }


def _parts(slides: TrainingSlides, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    fewest = min(len(set(slides.patient_ids[slides.labels == c])) for c in np.unique(slides.labels))
    if fewest < 2:
        raise RequestError(
            f"the head bag-stats weighs its classifiers by cross-validation and needs 2 training patients of each "
            f"class, found {fewest}; add patients, use fewer folds, or take mean"
        )
    splitter = StratifiedGroupKFold(min(_PARTS, fewest), shuffle=True, random_state=seed)
    parts = list(splitter.split(slides.labels, slides.labels, slides.patient_ids))
    if any(len(np.unique(slides.labels[train])) < len(np.unique(slides.labels)) for train, _ in parts):
        raise RequestError(
            "the head bag-stats cannot split its training patients so that all classes are on both sides; "
            "add patients, use fewer folds, or take mean"
        )
    return parts


def build(shape: HeadShape) -> BagStats:
    return BagStats(shape)

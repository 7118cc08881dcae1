"""Few positive patches among thousands: directions that positive slides' best patches have and negative slides lack.

Attention that starts at random averages ten positive patches in five thousand away and gets no gradient from them. Here
nothing starts at random:

1. Each slide is centred and scaled by its own patches, so that stain and scanner, which move all of them, do not count.
2. First guesses say which patches are of a kind that negative slides do not have (mil.heads.search): by neighbours in
   other slides, which needs few slides, and by local discriminants, which find kinds that overlap with normal ones and
   need many patches.
3. A linear discriminant of the best three or ten patches of each positive slide against negative ones is learned from
   each guess, once and again, each slide's patches always chosen without its patient (mil.heads.search.refinement).
   Where kinds take turns among positive slides, each has a discriminant of its own (mil.heads.search.kinds).
4. All of this is done five times without a fifth of the patients, whose slides are scored then. On these scores stand
   the choice of the guess, of three or ten, of once, again or by kind, and of how many top patches make a slide's
   score, the calibration, and the loss; what is said of a slide, on the choice that the other fifths make.
   Where the loss is not below log 2 nothing was found, and all slides get nearly the same probability.

A slide that is tumour all over has nothing left after its centring: what shows in a slide's mean is not for this head.
All of this applies to two classes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from mil.heads.bags import Bags
from mil.heads.head import Fitted, HeadShape, MilOutput, OwnRecipe, TrainingSlides
from mil.heads.search.choice import choose
from mil.heads.search.kinds import KINDS
from mil.heads.search.learners import Learners
from mil.heads.search.local_discriminants import cell_counts, local_discriminants
from mil.heads.search.neighbours import neighbours
from mil.heads.search.refinement import TOPS, Refinement, Slide
from tiling.jobs.errors import RequestError

_PARTS = 5  # of the cross-fit
_SHRINKAGE = 10  # patches; the mean and variance of a slide of N are its own by the part N / (N + this)
_LIMIT = 8.0  # largest centred value, in standard deviations
_PROJECTED = 64  # principal components on which first guesses are made
_SMALLEST_STD = 1e-6


class Needle(OwnRecipe):
    """bags (ΣN, D) -> logits (B, 2), attention (ΣN,), patch_logits (ΣN, 2). RequestError unless C = 2."""

    for_classes_alone = True

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(replace(shape, feature_limit=0.0))  # they are limited after centring
        if shape.n_classes != 2:
            raise RequestError(
                f"the head needle tells two classes apart, the target has {shape.n_classes}; take gated-abmil"
            )
        self.register_buffer("directions", torch.zeros(KINDS, shape.dim_in))  # in which patches of all have deviation 1
        self.register_buffer("top", torch.ones((), dtype=torch.int64))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # slope and intercept of the positive's log odds
        self.register_buffer("positive", torch.ones((), dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if (direction := state_dict.pop(f"{prefix}direction", None)) is not None:  # (D,), all that a model had before
            state_dict[f"{prefix}directions"] = direction.expand(KINDS, -1)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, bags: Bags) -> MilOutput:
        slope, intercept = self.get_buffer("calibration")
        logits, attention, patch_logits = [], [], []
        for features in bags.features.split(bags.sizes):
            scores = (self._centred(features) @ self.get_buffer("directions").T).amax(1)  # (N,)
            top = scores.topk(min(int(self.get_buffer("top")), len(scores))).values
            logits.append(slope * top.mean() + intercept)
            attention.append((slope.abs() * scores).softmax(0))
            patch_logits.append(slope * scores + intercept)
        return MilOutput(
            self._two_classes(torch.stack(logits)), torch.cat(attention), self._two_classes(torch.cat(patch_logits))
        )

    @torch.no_grad()
    def fit(self, slides: TrainingSlides, positive: int | None, rng: np.random.Generator) -> Fitted:
        """Learn from all slides; the loss is their cross-fitted log loss. The same seed gives the same weights.

        RequestError if a class has a single patient, or naming the slides whose features are not numbers.
        """
        broken = [str(i) for i, f in zip(slides.slide_ids, slides.features, strict=True) if not f.isfinite().all()]
        if broken:
            raise RequestError(f"features are not numbers, with slides {', '.join(broken)}; look at them")
        positive = 1 if positive is None else positive
        self.get_buffer("positive").fill_(positive)
        labels: NDArray[np.bool_] = slides.labels == positive
        parts = _parts(slides, labels, rng)
        learners = Learners.cross_fit(labels, slides.patient_ids, parts)

        def slide(i: int) -> Tensor:
            return self._centred(slides.features[i].to(self.device))

        means, covariance = _moments(slide, len(labels))
        variances, axes = torch.linalg.eigh(covariance)
        variances.clamp_min_(0)
        main, onto = variances[-_PROJECTED:], axes[:, -_PROJECTED:].float()
        projected = [slide(i) @ onto for i in range(len(labels))]
        scale = (main + 0.05 * main.mean()).clamp_min(_SMALLEST_STD).float()
        counts = cell_counts(sum(map(len, projected)))
        guesses = [
            neighbours([x / scale**0.25 for x in projected], learners, rng),
            *(local_discriminants(projected, scale.sqrt(), count, learners, rng) for count in counts),
        ]
        del projected
        directions, said = Refinement(slide, means, variances, axes, learners).run(guesses, rng)
        held_out = np.empty((*said.shape[2:], len(said)))  # (S, TOPS, C)
        for q, part in enumerate(parts):
            held_out[part] = said[:, q, part].transpose(1, 2, 0)
        best = choose(held_out, labels)
        self.get_buffer("directions").copy_(directions[best.candidate, -1])
        self.get_buffer("top").fill_(best.top)
        self.get_buffer("calibration").copy_(torch.tensor([best.slope, best.intercept]))
        log_odds = np.empty(len(labels))
        for part in parts:  # the least of dozens of losses flatters, so each part is scored by what the others choose
            others = np.setdiff1d(np.arange(len(labels)), part)
            chosen = choose(held_out[others], labels[others])
            log_odds[part] = chosen.slope * held_out[part, TOPS.index(chosen.top), chosen.candidate] + chosen.intercept
        return Fitted(best.loss, self._two_classes(torch.from_numpy(log_odds)))

    def _centred(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D) float32 by the slide's own mean and deviation, as far as its number of patches allows."""
        x = self.standardise(Bags(features, torch.tensor([0, len(features)])))
        own = len(x) / (len(x) + _SHRINKAGE)
        mean = x.mean(0)
        variance = own * (x - mean).square_().mean(0) + (1 - own)  # in a sixth of the time of x.var
        return (x - own * mean).div_(variance.clamp_min(_SMALLEST_STD).sqrt()).clamp_(-_LIMIT, _LIMIT)

    def _two_classes(self, log_odds: Tensor) -> Tensor:
        """Log odds of the positive class (…,) -> logits (…, 2)."""
        sign = 1.0 if int(self.get_buffer("positive")) == 1 else -1.0
        return torch.stack([-sign * log_odds / 2, sign * log_odds / 2], dim=1)


def _moments(slide: Slide, slides: int) -> tuple[Tensor, Tensor]:
    """Mean of each slide's centred patches (S, D), second moments of all patches (D, D), float64."""
    means, products, patches = [], torch.zeros(()), 0
    for i in range(slides):
        x = slide(i)
        means.append(x.double().mean(0))
        products = products + (x.T @ x).double()
        patches += len(x)
    return torch.stack(means), products / patches


def _parts(slides: TrainingSlides, labels: NDArray[np.bool_], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Disjoint parts of the slides, by patient and stratified."""
    fewest = min(len(set(slides.patient_ids[labels == c])) for c in (0, 1))
    if fewest < 2:
        raise RequestError(
            f"the head needle scores slides by what it learned without their patient and needs 2 training patients "
            f"of each class, found {fewest}; add patients, use fewer folds, or take gated-abmil"
        )
    splitter = StratifiedGroupKFold(min(_PARTS, fewest), shuffle=True, random_state=int(rng.integers(1 << 31)))
    return [held_out for _, held_out in splitter.split(labels, labels, slides.patient_ids)]


def build(shape: HeadShape) -> Needle:
    return Needle(shape)

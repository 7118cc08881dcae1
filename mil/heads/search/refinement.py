"""From a first guess to directions: the best patches of positive slides against those of negative ones.

A linear discriminant (Fisher 1936) with the covariance of all patches, again and again on the patches that it puts
first: in positive slides against the mean of negative slides' patches and of those that it puts first in these. Each
slide's patches are scored by a direction that was learned without its patient, and so no slide chooses patches because
it was trained on them; leaving a patient out is a subtraction of sums. The covariance is ridged by features / (features
+ patches learned from) of a mean variance: a difference of means in 768 features, of 60 patches, is mostly chance.

Where several kinds take turns among positive slides, these are divided by kind (mil.heads.search.kinds). Each kind has
a direction of its own, and a patch's score is the largest of them.

All sums are kept along the principal axes of the patches, where a covariance, ridged or not, is inverted by a division.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.heads.search.kinds import KINDS, of_slides
from mil.heads.search.learners import Floats, Guess, Learners

BEST = (3, 10)  # patches of a slide that a direction may be learned from
TOPS = (1, 3, 10)  # whose mean may be a slide's score
_ROUNDS = 2

Slide = Callable[[int], Tensor]  # the centred patches (N, D) float32 of a slide


class Refinement:
    """Directions of C candidates, each for Q learners, over rounds through the slides. K is 1 or KINDS."""

    def __init__(self, slide: Slide, means: Tensor, variances: Tensor, axes: Tensor, learners: Learners) -> None:
        """means (S, D) of the slides' centred patches; of all of them variances (D,) along axes (D, D); all float64."""
        self._slide, self._learners = slide, learners
        self._variances, self._axes = variances, axes
        self._back = axes.T.float()
        self._means = torch.nn.functional.pad(means @ axes, (0, 1), value=1.0)

    def run(self, guesses: Sequence[Guess], rng: np.random.Generator) -> tuple[Tensor, Floats]:
        """Directions (C, Q, KINDS, D) of the learners, and the mean of each slide's best patches (C, Q, S, TOPS).

        A candidate is a guess with a number of best patches, of several kinds, or of one (its directions are all the
        same) before and after the rounds: C is 3 · guesses · BEST.

        What a learner says of a slide that it learns from comes of a direction without its patient.
        """
        candidates, (learners, slides) = len(guesses) * len(BEST), self._learners.learns.shape
        counts = torch.tensor(BEST * len(guesses), device=self._means.device)  # (C,)
        dim = len(self._variances)
        best = torch.zeros(candidates, learners, slides, dim + 1, dtype=torch.float64, device=self._means.device)
        for c, guess in enumerate(guesses):
            own = slice(c * len(BEST), (c + 1) * len(BEST))
            for i, scores in guess.items():
                of_patches = torch.from_numpy(scores).to(self._means.device).expand(len(BEST), -1, -1)
                best[own, :, i] = self._best(self._slide(i), of_patches, counts[own])
        kinds = self._kinds(best, counts, rng)
        directions, said = [self._of_all(best, kinds, counts)], [self._judged(best, kinds, counts)[1]]
        one = torch.ones_like(kinds[:, :1])
        for done in range(_ROUNDS + 1):
            following, top_means = self._judged(best, one, counts)
            if done in (0, _ROUNDS):
                directions.append(self._of_all(best, one, counts))
                said.append(top_means)
            best = following
        return torch.cat(directions), torch.cat(said).cpu().numpy()

    def _kinds(self, best: Tensor, counts: Tensor, rng: np.random.Generator) -> Tensor:
        """best (C, Q, S, D + 1) -> (C, KINDS, Q, S), 1 where a learner takes a positive slide for one of a kind."""
        kinds = best.new_zeros(len(best), KINDS, *best.shape[1:3])
        whitening = (self._variances + self._ridges(counts, KINDS)[:, 0, 0]).rsqrt()  # (C, D)
        learns = torch.from_numpy(self._learners.learns & self._learners.positive).to(best.device)
        seed = int(rng.integers(1 << 31))
        for c, q in np.ndindex(*best.shape[:2]):
            own = learns[q] & (best[c, q, :, -1] > 0.5)
            kinds[c, :, q, own] = of_slides(_mean(best[c, q, own]) * whitening[c], seed)
        return kinds

    def _of_all(self, best: Tensor, kinds: Tensor, counts: Tensor) -> Tensor:
        """(C, Q, KINDS, D): the learners' directions, of all slides that they learn from."""
        directions = self._directions(*self._sums(best, kinds), counts) @ self._axes.T
        return directions.expand(-1, KINDS, -1, -1).transpose(1, 2)

    def _judged(self, best: Tensor, kinds: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """As best (C, Q, S, D + 1) and the mean of each slide's best patches (C, Q, S, TOPS), by directions without its
        patient."""
        following, top_means = torch.empty_like(best), best.new_empty(*best.shape[:3], len(TOPS))
        sums = self._sums(best, kinds)
        for i in range(best.shape[2]):
            x, mates = self._slide(i), self._learners.patient == self._learners.patient[i]
            of_patient = self._sums(best[:, :, mates], kinds[..., mates], mates)
            found, likest, other = (a - b for a, b in zip(sums, of_patient, strict=True))
            directions = self._directions(found, likest, other, counts)  # (C, K, Q, D)
            scores = (directions.float() @ self._back @ x.T).amax(1)  # (C, Q, N)
            following[:, :, i], top_means[:, :, i] = self._best(x, scores, counts), _top_means(scores)
        return following, top_means

    def _sums(
        self, best: Tensor, kinds: Tensor, own: NDArray[np.bool_] | slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of slides `own`: best (C, Q, s, D + 1), kinds (C, K, Q, s) -> sums and numbers of the best patches of
        positive slides (C, K, Q, D + 1), of those of negative ones (C, 1, Q, D + 1), of negative slides (Q, D + 1)."""
        positive, learns = self._learners.positive[own], self._learners.learns[:, own]
        chosen, other = (torch.from_numpy(learns & c).to(best) for c in (positive, ~positive))
        found = torch.einsum("cqsd,ckqs->ckqd", best, kinds * chosen)
        likest = torch.einsum("cqsd,qs->cqd", best, other).unsqueeze(1)
        return found, likest, other @ self._means[own]

    def _directions(self, found: Tensor, likest: Tensor, other: Tensor, counts: Tensor) -> Tensor:
        """Sums and numbers as of `_sums` -> (C, K, Q, D), along the axes; scores of all patches have deviation 1."""
        known = (found[..., -1:] > 0.5) & (other[..., -1:] > 0.5)
        negative = torch.where(likest[..., -1:] > 0.5, (_mean(likest) + _mean(other)) / 2, _mean(other))
        difference = torch.where(known, _mean(found) - negative, 0)
        directions = difference / (self._variances + self._ridges(counts, found.shape[1]))
        variance = (self._variances * directions.square()).sum(-1, keepdim=True)
        return directions / variance.clamp_min(1e-12).sqrt()

    def _ridges(self, counts: Tensor, kinds: int) -> Tensor:
        """(C,) -> (C, 1, 1, 1)"""
        dim, learned_from = len(self._variances), counts * int(self._learners.positive.sum()) / kinds  # patches
        ridges: Tensor = self._variances.mean() * dim / (dim + learned_from.double())
        return ridges[:, None, None, None]

    def _best(self, x: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
        """x (N, D), scores (c, Q, N), counts (c,) -> (c, Q, D + 1): sum, along the axes, and number of the best."""
        chosen = scores.topk(min(int(counts.max()), len(x)), dim=-1).indices  # (c, Q, most)
        taken = (torch.arange(chosen.shape[-1], device=x.device) < counts[:, None, None]).double()  # (c, 1, most)
        sums = (x[chosen].double() * taken.unsqueeze(-1)).sum(-2) @ self._axes
        return torch.cat([sums, taken.sum(-1, keepdim=True).expand(*sums.shape[:-1], 1)], dim=-1)


def _mean(sums: Tensor) -> Tensor:
    """(…, D + 1) -> (…, D)"""
    return sums[..., :-1] / sums[..., -1:].clamp_min(1)


def _top_means(scores: Tensor) -> Tensor:
    """(…, N) -> (…, TOPS)"""
    ordered = scores.topk(min(max(TOPS), scores.shape[-1]), dim=-1).values
    return torch.stack([ordered[..., :top].mean(-1) for top in TOPS], dim=-1)

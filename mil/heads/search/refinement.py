"""From a first guess to a direction: the best patches of positive slides against those of negative ones.

A linear discriminant (Fisher 1936) with the covariance of all patches, again and again on the patches that it puts
first: in positive slides against the mean of negative slides' patches and of those that it puts first in these. Each
slide's patches are scored by a direction that was learned without its patient, and so no slide chooses patches because
it was trained on them; leaving a patient out is a subtraction of sums. The covariance is ridged by features / (features
+ patches learned from) of a mean variance: a difference of means in 768 features, of 60 patches, is mostly chance.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.heads.search.learners import Floats, Guess, Learners

BEST = (3, 10)  # patches of a slide that a direction may be learned from
TOPS = (1, 3, 10)  # whose mean may be a slide's score
_ROUNDS = 2

Slide = Callable[[int], Tensor]  # the centred patches (N, D) float32 of a slide


class Refinement:
    """Directions of C candidates, each for Q learners, over rounds through the slides."""

    def __init__(self, slide: Slide, means: Tensor, covariance: Tensor, learners: Learners) -> None:
        """means (S, D) of the slides' centred patches, covariance (D, D) of all of them, both float64."""
        self._slide, self._learners = slide, learners
        dim = len(covariance)
        learned_from = torch.tensor(BEST).to(covariance) * int(learners.positive.sum())  # patches
        ridges = covariance.diagonal().mean() * dim / (dim + learned_from)
        ridged = covariance + ridges[:, None, None] * torch.eye(dim).to(covariance)
        self._inverses = torch.cholesky_inverse(torch.linalg.cholesky(ridged))  # (BEST, D, D)
        self._covariance, self._means = covariance, means

    def run(self, guesses: Sequence[Guess]) -> tuple[Tensor, Floats]:
        """Directions (C, Q, D) of the learners, and the mean of each slide's best patches (C, Q, S, TOPS).

        A candidate is a guess with a number of best patches, before and after the rounds: C is 2 · guesses · BEST.
        Where several kinds take turns among slides, each round draws the direction towards one of them.

        What a learner says of a slide that it learns from comes of a direction without its patient.
        """
        candidates, (learners, slides) = len(guesses) * len(BEST), self._learners.learns.shape
        counts = torch.tensor(BEST * len(guesses), device=self._means.device)  # (C,)
        dim = self._means.shape[1]
        best = torch.zeros(candidates, learners, slides, dim + 1, dtype=torch.float64, device=self._means.device)
        for c, guess in enumerate(guesses):
            own = slice(c * len(BEST), (c + 1) * len(BEST))
            for i, scores in guess.items():
                of_patches = torch.from_numpy(scores).to(self._means.device).expand(len(BEST), -1, -1)
                best[own, :, i] = _best(self._slide(i), of_patches, counts[own])
        directions, said = [], []
        for done in range(_ROUNDS + 1):
            of_slides = [(_best(x, scores, counts), _top_means(scores)) for x, scores in self._scored(best)]
            if done in (0, _ROUNDS):
                directions.append(self._directions(*self._sums(best, self._learners.learns)))
                said.append(torch.stack([top_means for _, top_means in of_slides], dim=2))
            best = torch.stack([sums for sums, _ in of_slides], dim=2)
        return torch.cat(directions), torch.cat(said).double().cpu().numpy()

    def _scored(self, best: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each slide's patches (N, D) and their scores (C, Q, N), by directions without its patient."""
        sums = self._sums(best, self._learners.learns)
        for i in range(best.shape[2]):
            x, mates = self._slide(i), self._learners.patient == self._learners.patient[i]
            of_patient = self._sums(best[:, :, mates], self._learners.learns[:, mates], mates)
            directions = self._directions(*(a - b for a, b in zip(sums, of_patient, strict=True)))
            yield x, directions.float() @ x.T

    def _sums(
        self, best: Tensor, learns: NDArray[np.bool_], own: NDArray[np.bool_] | slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of slides `own`: best (C, Q, s, D + 1), learns (Q, s) -> sums and numbers of the best patches of positive
        slides (C, Q, D + 1), of those of negative ones (C, Q, D + 1), and of negative slides (Q, D + 1)."""
        positive = self._learners.positive[own]
        chosen, other = (torch.from_numpy(learns & c).to(best) for c in (positive, ~positive))
        means = torch.nn.functional.pad(self._means[own], (0, 1), value=1.0)
        found, likest = (torch.einsum("cqsd,qs->cqd", best, part) for part in (chosen, other))
        return found, likest, other @ means

    def _directions(self, found: Tensor, likest: Tensor, other: Tensor) -> Tensor:
        """Sums and numbers as of `_sums` -> (C, Q, D) with which scores of all patches have deviation 1."""
        known = (found[..., -1:] > 0.5) & (other[..., -1:] > 0.5)
        negative = torch.where(likest[..., -1:] > 0.5, (_mean(likest) + _mean(other)) / 2, _mean(other))
        difference = torch.where(known, _mean(found) - negative, 0)
        directions = (difference.view(-1, len(BEST), *difference.shape[1:]) @ self._inverses).flatten(0, 1)
        variance = ((directions @ self._covariance) * directions).sum(-1, keepdim=True)
        return directions / variance.clamp_min(1e-12).sqrt()


def _best(x: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
    """x (N, D), scores (c, Q, N), counts (c,) -> (c, Q, D + 1): sum and number of the best patches."""
    chosen = scores.topk(min(int(counts.max()), len(x)), dim=-1).indices  # (c, Q, most)
    taken = torch.arange(chosen.shape[-1], device=x.device) < counts[:, None, None]  # (c, 1, most)
    patches = torch.nn.functional.pad(x[chosen].double(), (0, 1), value=1.0)  # (c, Q, most, D + 1)
    return (patches * taken.unsqueeze(-1)).sum(-2)


def _mean(sums: Tensor) -> Tensor:
    """(…, D + 1) -> (…, D)"""
    return sums[..., :-1] / sums[..., -1:].clamp_min(1)


def _top_means(scores: Tensor) -> Tensor:
    """(…, N) -> (…, TOPS)"""
    ordered = scores.topk(min(max(TOPS), scores.shape[-1]), dim=-1).values
    return torch.stack([ordered[..., :top].mean(-1) for top in TOPS], dim=-1)

"""Gradient descent of several models at once, from the slides to the history of their losses and the kept epoch.

AdamW with a cosine schedule after a warm-up; classes weigh the same in the loss. The epoch is kept where the mean of
the last few validation losses is lowest, the first fifth of all epochs left out: the loss of a few slides jumps, and by
chance its lowest value can come before anything is learnt.

All models go through the slides in one order, in steps of the same slides; each learns from those of its own training
part, and a model that has none in a step is left as it is. Order and dropout come from the seed, repeat, epoch and
slide. So a model does not depend on which others of its repeat are trained with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.cohort.cohort import Cohort
from mil.cohort.memory import MappedFeatures, on_device
from mil.cohort.splits import Fold, Indices
from mil.heads.bags import pack
from mil.heads.dropout import Noise, seed_dropout
from mil.heads.head import Head
from mil.training.config import TrainConfig
from mil.training.model import Epoch, Kept, Model
from mil.training.plan import Plan
from mil.training.stack import Stack, TrainingLoss
from tiling.jobs.errors import RequestError
from tiling.jobs.workers import alive

OnEpoch = Callable[[Fold, Mapping[str, float]], None]  # values by the columns of history.csv
_WARM_UP = 0.05  # part of all steps
_EARLIEST = 0.2  # part of all epochs before which none is kept
_SMOOTHED = 0.05  # part of all epochs whose validation losses are averaged
_EVALUATED_PATCHES = 8192  # in one pass of evaluation, as long as that is more than one slide
_BLOCK_ROWS = 64  # a bfloat16 step has whole blocks of patches: a CPU compiles each new shape, for longer than it runs


def epoch_order(seed: int, repeat: int, epoch: int, slides: int) -> Indices:
    """(S,) positions of all slides in the order in which this epoch, from 1, goes through them."""
    return np.random.default_rng((seed, epoch, repeat)).permutation(np.arange(slides))


class Descent:
    """A stack of models of one repeat on its way; those that have not stopped are the rows of the stack."""

    def __init__(
        self,
        cohort: Cohort,
        models: Sequence[Model],
        heads: Sequence[Head],
        config: TrainConfig,
        device: torch.device,
        plan: Plan,
    ) -> None:
        self._cohort, self._config, self._device = cohort, config, device
        self._models = list(models)
        self._repeat = models[0].fold.repeat
        self._noise = Noise(config.seed, self._repeat)
        self._steps, self._bf16 = plan.steps_per_epoch, plan.bf16
        for head in heads:
            seed_dropout(head, self._noise)
        self._stack = Stack(
            heads, TrainingLoss(cohort.task, config.loss_of(cohort.task.losses), config.label_smoothing)
        )
        self._rows = list(self._stack.weights.detach())
        self._optimiser = self._fresh_optimiser()
        self._targets = torch.from_numpy(cohort.targets)
        self._features = on_device(cohort.features, device)
        self._covariates = None if cohort.covariates is None else torch.from_numpy(cohort.covariates.values)
        self._set_parts()

    def run(self, on_epoch: OnEpoch) -> None:
        """To the last epoch, or as far as patience goes. RequestError when a loss is no longer a number."""
        for number in range(1, self._config.epochs + 1):
            order = epoch_order(self._config.seed, self._repeat, number, len(self._cohort.bag_ids))
            losses, worst = np.zeros(len(self._models)), np.full(len(self._models), -np.inf)
            worst_steps = [order[:0]] * len(self._models)
            steps = np.array_split(order, self._steps)
            for place, (step, following) in enumerate(zip(steps, [*steps[1:], order[:0]], strict=True)):
                self._expect(following)
                rate = self._learning_rate((number - 1) * self._steps + place)
                of_step, own = self._step(step, rate, number), self._in_train[:, step]
                losses += of_step
                means = np.divide(of_step, own.sum(axis=1), out=np.full(len(own), -np.inf), where=own.any(axis=1))
                for row in np.flatnonzero(means > worst):
                    worst[row], worst_steps[row] = means[row], step[own[row]]
            for model, slides in zip(self._models, worst_steps, strict=True):
                model.worst_step.append(slides)
            train_losses = losses / self._in_train.sum(axis=1)
            first_rate = self._learning_rate((number - 1) * self._steps)
            stopped = self._judge_epoch(number, first_rate, train_losses, on_epoch)
            if all(stopped):
                break
            if any(stopped):
                self._leave_out(stopped)

    def _expect(self, step: Indices) -> None:
        """Slides of this step that somebody learns from are read while the one before is worked on."""
        if isinstance(self._features, MappedFeatures):
            for slide in step[self._in_train[:, step].any(axis=0)].tolist():
                self._features.expect(slide)

    def _step(self, step: Indices, rate: float, epoch: int) -> NDArray[np.float64]:
        """One optimiser step of all models on their own slides of `step`; the sum of losses (M,)."""
        alive()
        step = step[self._in_train[:, step].any(axis=0)]
        own = self._in_train[:, step]  # (M, B)
        counts = own.sum(axis=1)
        if not len(step):
            return np.zeros(len(own))
        losses, _ = self._forward(step, epoch, train=True)
        weights = torch.from_numpy(own / np.maximum(counts, 1)[:, None]).to(losses)
        mean = (losses * weights).sum(1)  # (M,)
        self._stack.weights.grad = None
        mean.sum().backward()
        gradient = self._stack.weights.grad
        assert gradient is not None
        norm = gradient.norm(dim=1)  # (M,)
        checked = torch.stack([mean.detach(), norm]).cpu().double().numpy()  # (2, M)
        self._require_finite(checked, own, step, epoch)
        gradient *= (self._config.gradient_clip / (norm + 1e-6)).clamp(max=1).unsqueeze(1)
        for row, row_gradient, count in zip(self._rows, gradient, counts, strict=True):
            row.grad = row_gradient if count else None  # without a gradient the optimiser passes the row by
        self._optimiser.param_groups[0]["lr"] = rate
        self._optimiser.step()
        total: NDArray[np.float64] = checked[0] * counts
        return total

    def _forward(self, slides: Indices, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
        """Losses (M, B) and logits (M, B, C)."""
        features, dropped = [self._features[i] for i in slides], self._config.instance_dropout
        if train and dropped:
            for at, (i, f) in enumerate(zip(slides.tolist(), features, strict=True)):
                features[at] = f[self._noise.instances(i, len(f), dropped, epoch).to(f.device)]
        bf16, count = self._bf16 and train, len(slides)
        if bf16:
            features.append(_filler(features))
            slides = np.append(slides, slides[0])
        covariates = None if self._covariates is None else self._covariates[torch.from_numpy(slides)]
        bags = pack(features, covariates).to(self._device)
        self._noise.set(slides.tolist(), bags.sizes, epoch)
        targets = self._targets[torch.from_numpy(slides)].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            losses, logits = self._stack(bags, targets, self._terms, train)
        return losses[:, :count], logits[:, :count]

    @torch.no_grad()
    def _judge_epoch(
        self, number: int, rate: float, train_losses: NDArray[np.float64], on_epoch: OnEpoch
    ) -> list[bool]:
        """Evaluate all models on their validation parts; which of them stop here."""
        judged = np.flatnonzero(self._in_val.any(axis=0))
        if not len(judged):
            return [
                self._end_unjudged(row, number, rate, train_losses[row], on_epoch) for row in range(len(self._models))
            ]
        results = [self._forward(part, number, train=False) for part in self._parts_of(judged)]
        losses = torch.cat([r[0] for r in results], dim=1).double().cpu().numpy()  # (M, judged)
        answers = self._cohort.task.answers(torch.cat([r[1] for r in results], dim=1).double())  # (M, judged, C)
        stopped = []
        for row, model in enumerate(self._models):
            own = self._in_val[row, judged]
            loss, own_answers = float(losses[row, own].mean()), answers[row, own]
            self._require_finite(np.array([[loss]]), own[None], judged, number)
            score = self._cohort.task.score(own_answers, self._cohort.targets[judged[own]])
            stop_loss = self._stop_loss(number, [*(epoch.val_loss for epoch in model.history), loss])
            model.history.append(Epoch(number, rate, float(train_losses[row]), loss, score, stop_loss))
            if stop_loss < model.best_loss:
                model.best_epoch, model.best_loss = number, stop_loss
                model.best = Kept(self._stack.state(row, self._rows[row]), own_answers, judged[own])
            on_epoch(model.fold, model.history[-1].columns(self._cohort.task))
            stopped.append(model.best is not None and number - model.best_epoch >= self._config.patience)
        return stopped

    def _end_unjudged(self, row: int, number: int, rate: float, train_loss: float, on_epoch: OnEpoch) -> bool:
        """Without a validation part nothing stops the training, and the last epoch is kept."""
        model = self._models[row]
        model.history.append(Epoch(number, rate, float(train_loss), math.nan, math.nan, math.nan))
        on_epoch(model.fold, model.history[-1].columns(self._cohort.task))
        if number == self._config.epochs:
            none = np.empty((0, len(self._cohort.task.output_names)))
            model.best = Kept(self._stack.state(row, self._rows[row]), none, model.fold.val)
        return number == self._config.epochs

    def _stop_loss(self, number: int, val_losses: Sequence[float]) -> float:
        if number < _EARLIEST * self._config.epochs:
            return math.nan
        return float(np.mean(val_losses[-max(1, round(_SMOOTHED * self._config.epochs)) :]))

    def _parts_of(self, slides: Indices) -> list[Indices]:
        """Consecutive slides with about _EVALUATED_PATCHES patches in all."""
        sizes = np.array([len(self._cohort.features[i]) for i in slides])
        return np.split(slides, np.flatnonzero(np.diff(np.cumsum(sizes) // _EVALUATED_PATCHES)) + 1)

    def _leave_out(self, stopped: Sequence[bool]) -> None:
        """Go on with the others, which keep their weights and what the optimiser knows of them."""
        left = [row for row, stop in enumerate(stopped) if not stop]
        states = [self._optimiser.state[self._rows[row]] for row in left]
        self._models = [self._models[row] for row in left]
        self._stack.keep(left)
        self._rows = list(self._stack.weights.detach())
        self._optimiser = self._fresh_optimiser()
        self._optimiser.state.update(zip(self._rows, states, strict=True))
        self._set_parts()

    def _fresh_optimiser(self) -> torch.optim.AdamW:
        config = self._config
        return torch.optim.AdamW(self._rows, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)

    def _set_parts(self) -> None:
        """Who learns from which slides (M, S), who is judged on which (M, S), the loss's terms (M, P)."""
        cohort = self._cohort
        slides, folds = np.arange(len(cohort.bag_ids)), [model.fold for model in self._models]
        self._in_train = np.stack([np.isin(slides, fold.train) for fold in folds])
        self._in_val = np.stack([np.isin(slides, fold.val) for fold in folds])
        terms = [cohort.task.loss_terms(cohort.targets[fold.train]) for fold in folds]
        self._terms = torch.stack(terms).to(self._device)

    def _learning_rate(self, step: int) -> float:
        """Rising to the largest in the warm-up, then half a cosine down to 0 at the end of all epochs."""
        steps = self._steps * self._config.epochs
        warm_up = max(1, round(_WARM_UP * steps))
        if step < warm_up:
            return self._config.learning_rate * (step + 1) / warm_up
        return self._config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    def _require_finite(self, values: NDArray[np.float64], own: NDArray[np.bool_], slides: Indices, epoch: int) -> None:
        """values (any, M), own (M, B): the models' slides among `slides` (B,)."""
        bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
        if len(bad):
            names = ", ".join(self._cohort.bag_ids[slides[own[bad[0]]]])
            raise RequestError(
                f"the loss is no longer a number in epoch {epoch}, with slides {names}; "
                "look at their features, or lower --learning-rate"
            )


def _filler(features: Sequence[Tensor]) -> Tensor:
    """One more bag, of zeros, with which the patches of all make whole blocks."""
    patches = sum(map(len, features))
    return features[0].new_zeros(_BLOCK_ROWS - patches % _BLOCK_ROWS, features[0].shape[1])

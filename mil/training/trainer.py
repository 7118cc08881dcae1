"""From slides to checkpoints and the history of their losses, for several folds at once.

AdamW with a cosine schedule after a warm-up; classes weigh the same in the loss; features are standardised
with the training part's mean and standard deviation. The epoch is kept where the mean of the last few validation
losses is lowest, the first fifth of all epochs left out: the loss of a few slides jumps, and by chance its lowest value
can come before anything is learnt.

All models go through the slides in one order, in steps of the same slides; each learns from those of its own training
part, and a model that has none in a step is left as it is. Weights come from SeedSequence((seed, repeat, fold)), order
and dropout from the seed, epoch and slide. So a fold's model does not depend on which others are trained with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.cohort.cohort import Cohort
from mil.cohort.memory import on_device
from mil.cohort.splits import Fold, Indices
from mil.heads.bags import pack
from mil.heads.dropout import Noise, seed_dropout
from mil.heads.head import Head, HeadShape, OwnRecipe, TrainingSlides
from mil.heads.registry import build_head
from mil.run.checkpoint import Checkpoint
from mil.tasks.task import Task
from mil.training.config import TrainConfig
from mil.training.plan import Plan
from mil.training.stack import Stack, TrainingLoss
from tiling.jobs.errors import RequestError

OnEpoch = Callable[[Fold, Mapping[str, float]], None]  # values by the columns of history.csv
_WARM_UP = 0.05  # part of all steps
_EARLIEST = 0.2  # part of all epochs before which none is kept
_SMOOTHED = 0.05  # part of all epochs whose validation losses are averaged
_SMALLEST_STD = 1e-6  # a feature that varies less is constant and is only centred
_EVALUATED_PATCHES = 8192  # in one pass of evaluation, as long as that is more than one slide


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv. Losses are means over slides."""

    epoch: int  # from 1
    learning_rate: float
    train_loss: float
    val_loss: float
    val_score: float  # the figure that the task watches
    stop_loss: float  # mean of the last validation losses, NaN while it is too early to keep an epoch

    def columns(self, task: Task) -> dict[str, float]:
        """By the names that they have in history.csv."""
        return {f"val_{task.watched}" if name == "val_score" else name: value for name, value in vars(self).items()}


def epoch_order(seed: int, epoch: int, slides: int) -> Indices:
    """(S,) positions of all slides in the order in which this epoch, from 1, goes through them."""
    return np.random.default_rng((seed, epoch)).permutation(np.arange(slides))


class _Model:
    """What is known of one model while it is trained."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.history: list[Epoch] = []
        self.worst_step: list[Indices] = []  # of each epoch, the slides of the step with the highest loss
        self.best_epoch, self.best_loss = 0, math.inf
        self.best: tuple[dict[str, Tensor], NDArray[np.float64]] | None = None  # state; answers (val, C)


def train_folds(
    cohort: Cohort,
    folds: Sequence[Fold],
    config: TrainConfig,
    device: torch.device,
    on_epoch: OnEpoch,
    plan: Plan,
) -> list[tuple[Checkpoint, pd.DataFrame]]:
    """The kept epoch's checkpoint and the history of each fold. RequestError when a loss is no longer a number.

    More than one fold needs a head for which mil.training.plan.can_stack holds.
    """
    heads = [_fresh_head(cohort, fold, config, plan.shape).to(device) for fold in folds]
    models = [_Model(fold) for fold in folds]
    if isinstance(heads[0], OwnRecipe):
        _fit(heads[0], cohort, models[0], config, on_epoch)
    else:
        _Training(cohort, models, heads, config, device, plan).run(on_epoch)
    return [(_checkpoint(model, cohort, config, plan.shape), _table(model, cohort)) for model in models]


def _fit(head: OwnRecipe, cohort: Cohort, model: _Model, config: TrainConfig, on_epoch: OnEpoch) -> None:
    """Train by the head's own recipe, which makes a history of one epoch with learning rate 0."""
    fold = model.fold
    slides = TrainingSlides(
        features=tuple(cohort.features[i] for i in fold.train),
        labels=cohort.labels[fold.train],
        patient_ids=cohort.patient_ids[fold.train],
        slide_ids=cohort.slide_ids[fold.train],
    )
    rng = np.random.default_rng(np.random.SeedSequence((config.seed, fold.repeat, fold.fold)))
    head.eval()
    train_loss = head.fit(slides, cohort.positive, rng)
    if not math.isfinite(train_loss):
        raise RequestError(f"fold {fold.number + 1}: the loss of --head {config.head} is no longer a number")
    with torch.no_grad():
        logits = [head(pack([cohort.features[i].to(head.device)])).logits.double().cpu() for i in fold.val]
    task, targets = cohort.task, cohort.targets[fold.val]
    of_val = torch.cat([*logits, torch.empty(0, len(task.output_names))])
    answers = task.answers(of_val)
    val_loss, score = math.nan, math.nan
    if len(targets):
        judged_by = task.judged_by(task.loss_terms(cohort.targets[fold.train]).double())
        val_loss, score = float(judged_by(of_val, torch.from_numpy(targets)).mean()), task.score(answers, targets)
    model.history.append(Epoch(1, 0.0, train_loss, val_loss, score, val_loss))
    model.best = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}, answers
    on_epoch(fold, model.history[-1].columns(task))


class _Training:
    """A stack of models on its way; `models` are those that have not stopped, row for row those of the stack."""

    def __init__(
        self,
        cohort: Cohort,
        models: Sequence[_Model],
        heads: Sequence[Head],
        config: TrainConfig,
        device: torch.device,
        plan: Plan,
    ) -> None:
        self._cohort, self._config, self._device = cohort, config, device
        self._models = list(models)
        self._noise = Noise(config.seed)
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
        self._set_parts()

    def run(self, on_epoch: OnEpoch) -> None:
        for number in range(1, self._config.epochs + 1):
            order = epoch_order(self._config.seed, number, len(self._cohort.slide_ids))
            losses, worst = np.zeros(len(self._models)), np.full(len(self._models), -np.inf)
            worst_steps = [order[:0]] * len(self._models)
            for place, step in enumerate(np.array_split(order, self._steps)):
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

    def _step(self, step: Indices, rate: float, epoch: int) -> NDArray[np.float64]:
        """One optimiser step of all models on their own slides of `step`; the sum of losses (M,)."""
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
        bags = pack(features).to(self._device)
        self._noise.set(slides.tolist(), bags.sizes, epoch)
        targets = self._targets[torch.from_numpy(slides)].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16 and train):
            return self._stack(bags, targets, self._terms, train)

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
                model.best = self._stack.state(row, self._rows[row]), own_answers
            on_epoch(model.fold, model.history[-1].columns(self._cohort.task))
            stopped.append(model.best is not None and number - model.best_epoch >= self._config.patience)
        return stopped

    def _end_unjudged(self, row: int, number: int, rate: float, train_loss: float, on_epoch: OnEpoch) -> bool:
        """Without a validation part nothing stops the training, and the last epoch is kept."""
        model = self._models[row]
        model.history.append(Epoch(number, rate, float(train_loss), math.nan, math.nan, math.nan))
        on_epoch(model.fold, model.history[-1].columns(self._cohort.task))
        if number == self._config.epochs:
            model.best = self._stack.state(row, self._rows[row]), np.empty((0, len(self._cohort.task.output_names)))
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
        slides, folds = np.arange(len(cohort.slide_ids)), [model.fold for model in self._models]
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
            names = ", ".join(self._cohort.slide_ids[slides[own[bad[0]]]])
            raise RequestError(
                f"the loss is no longer a number in epoch {epoch}, with slides {names}; "
                "look at their features, or lower --learning-rate"
            )


def _fresh_head(cohort: Cohort, fold: Fold, config: TrainConfig, shape: HeadShape) -> Head:
    seeds = np.random.SeedSequence((config.seed, fold.repeat, fold.fold))
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    head = build_head(config.head, shape)
    _set_standardisation(head, cohort, fold.train)
    return head


def _checkpoint(model: _Model, cohort: Cohort, config: TrainConfig, shape: HeadShape) -> Checkpoint:
    assert model.best is not None
    state, answers = model.best
    return Checkpoint(
        head=config.head,
        shape=asdict(shape),
        task=cohort.task,
        calibration=cohort.task.calibrate(answers, cohort.targets[model.fold.val], cohort.targets[model.fold.train]),
        tensors={name: tensor.numpy() for name, tensor in state.items()},
    )


def _table(model: _Model, cohort: Cohort) -> pd.DataFrame:
    table = pd.DataFrame([epoch.columns(cohort.task) for epoch in model.history])
    if model.worst_step:
        table["worst_step"] = [" ".join(cohort.slide_ids[slides]) for slides in model.worst_step]
    return table


def _set_standardisation(head: Head, cohort: Cohort, slides: Indices) -> None:
    """Mean and standard deviation of each feature over all patches of the slides, in float64."""
    means, squares = (moments[slides] for moments in cohort.moments)  # (S, D)
    sizes = np.array([[len(cohort.features[i])] for i in slides])  # (S, 1)
    mean = (sizes * means).sum(axis=0) / sizes.sum()
    std = np.sqrt((squares + sizes * (means - mean) ** 2).sum(axis=0) / sizes.sum())
    head.get_buffer("mean").copy_(torch.from_numpy(mean))
    head.get_buffer("std").copy_(torch.from_numpy(np.where(std > _SMALLEST_STD, std, 1.0)))

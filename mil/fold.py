"""Training of one fold: from slides to a checkpoint and the history of its losses.

AdamW with a cosine schedule after a warm-up; classes weigh the same in the loss; features are standardised
with the training part's mean and standard deviation; the epoch with the lowest validation loss is kept.
All randomness comes from SeedSequence((seed, repeat, fold)), so a fold does not depend on the ones before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from mil.bags import pack
from mil.cohort import Cohort
from mil.config import TrainConfig
from mil.metrics import choose_threshold, macro_auroc
from mil.models import HeadShape, build_head
from mil.models.head import Head, OwnRecipe, TrainingSlides
from mil.run import Checkpoint
from mil.splits import Fold, Indices
from tiling.errors import RequestError

_WARM_UP = 0.05  # part of all steps
_SMALLEST_STD = 1e-6  # a feature that varies less is constant and is only centred


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv. Losses are means over slides; val_auroc is macro for more than two classes."""

    epoch: int  # from 1
    learning_rate: float
    train_loss: float
    val_loss: float
    val_auroc: float


def train_fold(
    cohort: Cohort, fold: Fold, config: TrainConfig, device: torch.device, on_epoch: Callable[[Epoch], None]
) -> tuple[Checkpoint, pd.DataFrame]:
    """The best epoch's checkpoint and the history. RequestError when the loss is no longer a number."""
    seeds = np.random.SeedSequence((config.seed, fold.repeat, fold.fold))
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    rng = np.random.default_rng(seeds)
    shape = HeadShape(
        dim_in=cohort.features[0].shape[1],
        n_classes=len(cohort.classes),
        embed_dim=config.embed_dim,
        attention_dim=config.attention_dim,
        dropout=config.dropout,
    )
    head = build_head(config.head, shape)
    _set_standardisation(head, [cohort.features[i] for i in fold.train])
    head.to(device)
    weights = _class_weights(cohort.labels[fold.train], len(cohort.classes)).to(device)
    if isinstance(head, OwnRecipe):
        history, best = _fit(head, cohort, fold, config, weights, rng, on_epoch)
    else:
        history, best = _optimise(head, cohort, fold, config, weights, rng, on_epoch)
    head.load_state_dict(best)
    checkpoint = Checkpoint(
        head=config.head,
        shape=asdict(shape),
        classes=cohort.classes,
        positive=cohort.positive,
        threshold=_threshold(head, cohort, fold, config, weights),
        tensors={name: tensor.cpu().numpy() for name, tensor in best.items()},
    )
    return checkpoint, pd.DataFrame([asdict(epoch) for epoch in history])


def _fit(
    head: OwnRecipe,
    cohort: Cohort,
    fold: Fold,
    config: TrainConfig,
    weights: Tensor,
    rng: np.random.Generator,
    on_epoch: Callable[[Epoch], None],
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Train by the head's own recipe: a history of one epoch with learning rate 0, and the weights."""
    slides = TrainingSlides(
        features=tuple(cohort.features[i] for i in fold.train),
        labels=cohort.labels[fold.train],
        patient_ids=cohort.patient_ids[fold.train],
        slide_ids=cohort.slide_ids[fold.train],
    )
    train_loss = head.fit(slides, cohort.positive, rng)
    val_loss, probabilities = _judge(head, cohort, fold.val, weights, config.batch_slides)
    _require_finite([train_loss, val_loss], cohort.slide_ids[fold.val], 1)
    ones = np.ones((1, len(fold.val)))
    auroc = macro_auroc(probabilities, cohort.labels[fold.val], ones, cohort.positive)
    epoch = Epoch(1, 0.0, train_loss, val_loss, float(auroc[0]))
    on_epoch(epoch)
    return [epoch], {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def _optimise(
    head: Head,
    cohort: Cohort,
    fold: Fold,
    config: TrainConfig,
    weights: Tensor,
    rng: np.random.Generator,
    on_epoch: Callable[[Epoch], None],
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """History of all epochs, and a copy of the weights of the one with the lowest validation loss."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = math.ceil(len(fold.train) / config.batch_slides)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_up_then_cosine(batches * config.epochs))
    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    best_epoch, best_loss = 0, math.inf
    for number in range(1, config.epochs + 1):
        learning_rate = float(schedule.get_last_lr()[0])
        train_loss = 0.0
        head.train()
        for batch in np.array_split(rng.permutation(fold.train), batches):
            loss, _ = _forward(head, cohort, batch, weights)
            optimiser.zero_grad()
            loss.backward()
            norm = clip_grad_norm_(head.parameters(), config.gradient_clip)
            _require_finite([loss.item(), norm.item()], cohort.slide_ids[batch], number)
            optimiser.step()
            schedule.step()
            train_loss += loss.item() * len(batch) / len(fold.train)
        val_loss, probabilities = _judge(head, cohort, fold.val, weights, config.batch_slides)
        _require_finite([val_loss], cohort.slide_ids[fold.val], number)
        ones = np.ones((1, len(fold.val)))
        auroc = macro_auroc(probabilities, cohort.labels[fold.val], ones, cohort.positive)
        history.append(Epoch(number, learning_rate, train_loss, val_loss, float(auroc[0])))
        if val_loss < best_loss:
            best_epoch, best_loss = number, val_loss
            best = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
        on_epoch(history[-1])
        if number - best_epoch >= config.patience:
            break
    return history, best


def _forward(head: Head, cohort: Cohort, batch: Indices, weights: Tensor) -> tuple[Tensor, NDArray[np.float64]]:
    """Loss (scalar) and probabilities (B, C) of the slides at positions `batch`."""
    bags = pack([cohort.features[i] for i in batch]).to(weights.device)
    labels = torch.from_numpy(cohort.labels[batch]).to(weights.device)
    output = head(bags)
    probabilities = output.logits.detach().double().softmax(1).cpu().numpy()
    return head.loss(output, bags, labels, weights), probabilities


@torch.no_grad()
def _judge(
    head: Head, cohort: Cohort, part: Indices, weights: Tensor, batch_slides: int
) -> tuple[float, NDArray[np.float64]]:
    """Mean loss and probabilities (len(part), C) without dropout."""
    head.eval()
    batches = np.array_split(part, math.ceil(len(part) / batch_slides))
    results = [_forward(head, cohort, batch, weights) for batch in batches]
    loss = sum(float(loss) * len(batch) for (loss, _), batch in zip(results, batches, strict=True)) / len(part)
    return loss, np.concatenate([probabilities for _, probabilities in results])


def _threshold(head: Head, cohort: Cohort, fold: Fold, config: TrainConfig, weights: Tensor) -> float | None:
    if cohort.positive is None:
        return None
    _, probabilities = _judge(head, cohort, fold.val, weights, config.batch_slides)
    return choose_threshold(probabilities[:, cohort.positive], cohort.labels[fold.val] == cohort.positive)


def _set_standardisation(head: Head, features: Sequence[Tensor]) -> None:
    """Mean and standard deviation of each feature over all patches, in float64, slide by slide."""
    patches = sum(len(f) for f in features)
    mean = torch.stack([f.double().sum(0) for f in features]).sum(0) / patches  # (D,)
    variance = torch.stack([(f.double() - mean).square().sum(0) for f in features]).sum(0) / patches
    std = variance.sqrt()
    head.get_buffer("mean").copy_(mean)
    head.get_buffer("std").copy_(torch.where(std > _SMALLEST_STD, std, 1.0))


def _class_weights(labels: NDArray[np.int64], n_classes: int) -> Tensor:
    """(C,) such that each class adds the same to the loss, 1 for balanced classes."""
    counts = np.bincount(labels, minlength=n_classes)
    return torch.from_numpy(len(labels) / (n_classes * counts)).float()


def _warm_up_then_cosine(steps: int) -> Callable[[int], float]:
    warm_up = max(1, round(_WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return factor


def _require_finite(values: Sequence[float], slide_ids: NDArray[np.str_], epoch: int) -> None:
    if not all(map(math.isfinite, values)):
        raise RequestError(
            f"the loss is no longer a number in epoch {epoch}, with slides {', '.join(slide_ids)}; "
            "look at their features, or lower --learning-rate"
        )

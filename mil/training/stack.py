"""Several models of one kind as one: their weights are the rows of one matrix, their bags are shared.

One forward pass serves all of them (torch.func.vmap), which is many times faster where a pass over one model is too
small to keep the machine busy. A stack of one model is run as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mil.heads.bags import Bags
from mil.heads.head import Head
from mil.tasks.task import Task


@dataclass(frozen=True)
class TrainingLoss:
    """What a head is trained for."""

    task: Task
    name: str
    label_smoothing: float = 0.0


class _Judge(nn.Module):
    """A head and its loss as one function of the weights."""

    def __init__(self, head: Head, loss: TrainingLoss) -> None:
        super().__init__()
        self.head, self.loss = head, loss

    def forward(self, bags: Bags, targets: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,) and logits (B, C); the loss of evaluation is the task's own, of the slide alone."""
        output = self.head(bags)
        logits = output.logits.float()
        task = self.loss.task
        if not self.training:
            return task.judged_by(terms)(logits, targets), logits
        criterion = task.criterion(self.loss.name, terms, self.loss.label_smoothing)
        return self.head.bag_losses(output, bags, targets, criterion), logits


class Stack:
    """M heads of equal shape. `weights` (M, P) float32 holds all parameters, a row a model.

    The first head is used in each pass and must not be used elsewhere.
    """

    def __init__(self, heads: Sequence[Head], loss: TrainingLoss) -> None:
        self._judge = _Judge(heads[0], loss)
        self._shapes = {name: p.shape for name, p in self._judge.named_parameters()}
        rows = [torch.cat([p.detach().flatten() for p in head.parameters()]) for head in heads]
        self.weights = torch.stack(rows).requires_grad_()
        buffers = [dict(head.named_buffers(prefix="head")) for head in heads]
        self._buffers = {name: torch.stack([b[name] for b in buffers]) for name in buffers[0]}

    def __len__(self) -> int:
        return len(self.weights)

    def __call__(self, bags: Bags, targets: Tensor, terms: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        """targets (B, …), the task's loss terms (M, P) -> losses (M, B) and logits (M, B, C)."""
        self._judge.train(train)
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = self.weights.split(sizes, dim=1)
        state = {n: p.unflatten(1, s) for (n, s), p in zip(self._shapes.items(), parts, strict=True)}
        state |= self._buffers

        def one(state: dict[str, Tensor], terms: Tensor) -> tuple[Tensor, Tensor]:
            result: tuple[Tensor, Tensor] = functional_call(self._judge, state, (bags, targets, terms))
            return result

        if len(self) == 1:
            losses, logits = one({name: value[0] for name, value in state.items()}, terms[0])
            return losses.unsqueeze(0), logits.unsqueeze(0)
        both: tuple[Tensor, Tensor] = vmap(one, randomness="error")(state, terms)
        return both

    def keep(self, models: Sequence[int]) -> None:
        """Leave out all models but these."""
        chosen = torch.tensor(models, device=self.weights.device)
        self.weights = self.weights.detach()[chosen].requires_grad_()
        self._buffers = {name: values[chosen] for name, values in self._buffers.items()}

    def state(self, model: int, weights: Tensor) -> dict[str, Tensor]:
        """The state of head `model` with `weights` (P,) in place of its own; copies on the CPU."""
        parts = weights.split([shape.numel() for shape in self._shapes.values()])
        state = {n: p.reshape(s) for (n, s), p in zip(self._shapes.items(), parts, strict=True)}
        state |= {name: values[model] for name, values in self._buffers.items()}
        return {name.removeprefix("head."): t.detach().cpu().clone() for name, t in state.items()}

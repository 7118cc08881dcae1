"""What every head is to the rest of the program: bags in, one `MilOutput` out, its own loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mil.heads.bags import Bags, segment_softmax, segment_sum
from mil.heads.dropout import SlideDropout
from mil.heads.standardise import standardise
from mil.tasks.losses import Criterion
from mil.tasks.task import Targets, Task


@dataclass(frozen=True)
class HeadShape:
    """Everything needed to build a head before its weights are loaded; stored with each checkpoint."""

    dim_in: int  # D, length of a patch feature
    n_classes: int  # C
    embed_dim: int  # E
    attention_dim: int  # A
    dropout: float  # in training only
    feature_limit: float = 0.0  # standardised features lie within ± this; 0: wherever they do, as in earlier releases
    covariates: int = 0  # K, numbers that are known of a slide beside its patches
    targets: tuple[int, ...] = ()  # of several targets, the classes of each: a part of C each


@dataclass(frozen=True)
class MilOutput:
    """What a head says about B bags with ΣN patches and C classes."""

    logits: Tensor  # (B, C); their softmax is the probability of the slide
    attention: Tensor  # (ΣN,) >= 0, sums to 1 in each bag
    patch_logits: Tensor  # (ΣN, C), the classifier applied to each patch's own embedding; NaN where there is none
    class_attention: Tensor | None = None  # (ΣN, C) as attention, of each class, where a head has one a class
    contributions: Tensor | None = None  # (ΣN, C), whose sum over a bag is its logits, where a head is such a sum


class Head(nn.Module, ABC):
    """Base of all heads. Features are standardised with buffers `mean` and `std` (D,) of the training part and limited.

    A feature that is constant but for a few patches would be a hundred deviations away in those.
    """

    for_classes_alone = False  # whether its own loss or recipe takes targets for classes

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape.dim_in))
        self.register_buffer("std", torch.ones(shape.dim_in))
        self.input_dropout = nn.Dropout(shape.dropout)
        self.feature_limit = shape.feature_limit

    @abstractmethod
    def forward(self, bags: Bags) -> MilOutput: ...

    @property
    def of_slide(self) -> "Head":
        """The part that sees patches, all of it unless columns of the slide table are added."""
        return self

    def bag_losses(self, output: MilOutput, bags: Bags, labels: Tensor, criterion: Criterion) -> Tensor:
        """(B,) training loss of each bag; labels (B,) int64. A head with further terms overrides this."""
        return criterion(output.logits, labels)

    def standardise(self, bags: Bags) -> Tensor:
        """Features in any precision -> (ΣN, D) in the precision of the weights, per feature (x - mean) / std, limited.

        In training with dropout on them. No gradient goes back to the features.
        """
        mean, std, dropout = self.get_buffer("mean"), self.get_buffer("std"), self.input_dropout
        if isinstance(dropout, SlideDropout):
            keep = dropout.keep(bags.features)
            return standardise(bags.features, mean, std, keep, dropout.share, self.feature_limit)
        dropped: Tensor = dropout(standardise(bags.features, mean, std, limit=self.feature_limit))
        return dropped


@dataclass(frozen=True)
class TrainingSlides:
    """The training part of a fold, S slides, as a head that trains by its own recipe gets it."""

    features: tuple[Tensor, ...]  # S of (N, D) float16 on the CPU
    labels: Targets  # (S,) positions in classes; for a head that takes other targets too, as the task reads them
    patient_ids: NDArray[np.str_]  # (S,)
    slide_ids: NDArray[np.str_]  # (S,)
    task: Task | None = None  # whose targets they are; a head for classes alone needs none


@dataclass(frozen=True)
class Fitted:
    """What a recipe of a head's own came to."""

    loss: float  # on the training part
    held_out: Tensor  # (S, C) float64 on the CPU: logits of each slide from models that saw none of its patient's


class OwnRecipe(Head):
    """A head that is not trained by gradient descent on its loss, epoch after epoch, but all at once by `fit`."""

    @abstractmethod
    def fit(self, slides: TrainingSlides, positive: int | None, rng: np.random.Generator) -> Fitted:
        """Set all parameters and buffers. Mean and deviation of the features are set before.

        Random numbers come from `rng` and torch's global generator. RequestError names slides that break it.
        """

    @property
    def device(self) -> torch.device:
        return self.get_buffer("mean").device


class AttentionPooling(Head):
    """Base of heads that classify the mean of embedded patches, weighted by their attention.

    Of several targets each has an attention of its own: what shows in other patches is not looked for with one.
    """

    classify: nn.Linear  # E -> C; as it is linear, the slide's logits are a sum over patches

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        self.embed, self.targets = patch_embedding(shape), tuple(shape.targets)

    @abstractmethod
    def scores(self, embedded: Tensor) -> Tensor:
        """(ΣN, E) -> (ΣN,), whose softmax over the bag is the attention; (ΣN, T) for T targets."""

    def forward(self, bags: Bags) -> MilOutput:
        embedded = self.embed(self.standardise(bags))  # (ΣN, E)
        return self.pool(embedded, bags)

    def pool(self, embedded: Tensor, bags: Bags) -> MilOutput:
        attention = segment_softmax(self.scores(embedded), bags.sizes)
        if self.targets:
            return self._pool_each(embedded, attention, bags)
        pooled = segment_sum(attention.unsqueeze(1) * embedded, bags.sizes)  # (B, E)
        patch_logits = self.classify(embedded)
        contributions = attention.unsqueeze(1) * patch_logits
        return MilOutput(self.classify(pooled), attention, patch_logits, contributions=contributions)

    def _pool_each(self, embedded: Tensor, attention: Tensor, bags: Bags) -> MilOutput:
        """attention (ΣN, T); that of the first target is shown where none is named."""
        parts = zip(attention.split(1, dim=1), self.targets, strict=True)
        of_class = torch.cat([own.expand(-1, classes) for own, classes in parts], dim=1)  # (ΣN, C)
        patch_logits = self.classify(embedded)
        contributions = of_class * patch_logits
        logits = segment_sum(contributions, bags.sizes)
        return MilOutput(logits, attention[:, 0], patch_logits, of_class, contributions)


def patch_embedding(shape: HeadShape) -> nn.Sequential:
    """(ΣN, D) -> (ΣN, E): one linear layer with ReLU and dropout; dropout before it is part of `standardise`."""
    return nn.Sequential(
        nn.Identity(),  # the names of the weights count from here
        nn.Linear(shape.dim_in, shape.embed_dim),
        nn.ReLU(),
        nn.Dropout(shape.dropout),
    )

"""Dropout whose mask depends on the repeat, the epoch, the slide and the layer alone.

A slide gets the same mask in whatever batch it comes and whichever model sees it. So models that are trained
together, over the same packed bags, end like models that are trained one after another, each on its own slides.
Masks are cut from raw random bytes, ten times as fast on a CPU as torch's own; a share is rounded to 1/256.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 256  # of a random byte
_INSTANCES = 1 << 31  # a layer that no head has


class Noise:
    """Names the randomness of the forward pass that comes next."""

    def __init__(self, seed: int, repeat: int = 0) -> None:
        self.seed, self.repeat = seed, repeat
        self.sizes: list[int] = []
        self.slides: list[int] = []
        self.epoch = 0

    def set(self, slides: Sequence[int], sizes: Sequence[int], epoch: int) -> None:
        """The bags of the next pass: their positions in the cohort and their numbers of patches."""
        self.slides, self.sizes, self.epoch = list(slides), list(sizes), epoch

    def instances(self, slide: int, patches: int, dropped: float, epoch: int) -> Tensor:
        """Which of a slide's patches stay when the share `dropped` is left out: rising indices, at least one."""
        kept = max(1, round(patches * (1 - dropped)))
        generator = np.random.Generator(np.random.SFC64((self.seed, epoch, slide, _INSTANCES, self.repeat)))
        return torch.from_numpy(np.sort(generator.choice(patches, kept, replace=False, shuffle=False)))

    def keep(self, layer: int, width: int, rows: Sequence[int], share: float) -> Tensor:
        """(sum(rows), width) uint8 on the CPU; rows[i] rows are drawn for slide i, each entry 1 at `share`, else 0."""
        kept = np.empty((sum(rows), width), dtype=bool)
        end = 0
        for slide, count in zip(self.slides, rows, strict=True):
            generator = np.random.SFC64((self.seed, self.epoch, slide, layer, self.repeat))
            raw = generator.random_raw(-(-count * width // 8)).view(np.uint8)[: count * width]
            np.less(raw.reshape(count, width), round(share * _LEVELS), out=kept[end : end + count])
            end += count
        return torch.from_numpy(kept.view(np.uint8))  # torch converts it to float ten times as fast as bool


class SlideDropout(nn.Module):
    """Zeroes entries of (ΣN, E) or (B, E) in training and scales up the rest.

    For any other shape the mask is the next of a generator of its own: such models are not trained together.
    """

    def __init__(self, p: float, layer: int, noise: Noise) -> None:
        super().__init__()
        self.share = 1 - min(round(p * _LEVELS), _LEVELS - 1) / _LEVELS
        self.layer, self.noise = layer, noise
        self._others: torch.Generator | None = None

    def keep(self, x: Tensor) -> Tensor | None:
        """The mask of x (ΣN, E) or (B, E): 1 for what is kept, else 0; None where all is, out of training."""
        if not self.training or self.share == 1:
            return None
        sizes = self.noise.sizes
        rows = sizes if len(x) == sum(sizes) else [1] * len(sizes)
        return self.noise.keep(self.layer, x.shape[1], rows, self.share).to(x.device)

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.noise.sizes
        if x.ndim != 2 or len(x) not in (sum(sizes), len(sizes)):
            return x * self._next_mask(x) if self.training else x
        keep = self.keep(x)
        return x if keep is None else x * (keep.to(x.dtype) / self.share)

    def _next_mask(self, x: Tensor) -> Tensor:
        """Not of torch's own random state, which all threads share."""
        if self._others is None:
            seeds = np.random.SeedSequence((self.noise.seed, self.layer, self.noise.repeat))
            self._others = torch.Generator(x.device).manual_seed(int(seeds.generate_state(1)[0]))
        return torch.empty_like(x).bernoulli_(self.share, generator=self._others) / self.share


def seed_dropout(head: nn.Module, noise: Noise) -> None:
    """Replace each nn.Dropout in `head`, which has no weights, so that names in its state stay as they are."""
    names = [name for name, module in head.named_modules() if isinstance(module, nn.Dropout)]
    for layer, name in enumerate(names):
        dropout = head.get_submodule(name)
        assert isinstance(dropout, nn.Dropout)
        head.set_submodule(name, SlideDropout(dropout.p, layer, noise))

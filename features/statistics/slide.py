"""By-products of embedding: the colours of the tissue, and what the network's batch norms see, slide by slide.

Colours: mean and standard deviation of each channel over all tissue pixels, from whole-number sums over pixels. (The
mean of batches' variances, a common substitute, is smaller: it leaves out how batches differ.)

Batch norms: the first two moments of each channel of the input to each batch norm. The network carries the same two
of ImageNet, its running mean and variance, so the distance to ImageNet can be told without any of its images (as in
Li et al., "Adaptive Batch Normalization", 2018). Every 64th patch is taken, through a copy of the network whose batch
norms are not merged into convolutions.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from features.encoders.norms import norm_layers
from features.feature_file import SlideStatistics

NORM_EVERY = 64  # patches, of which one goes through `NormProbe`
_AT_ONCE = 8  # images in wide integers
_HISTOGRAMS = {"cpu"}  # devices whose pixels PIL can count


@dataclass(frozen=True)
class PixelSums:
    """Whole-number sums over tissue pixels of RGB in 0..255, so that adding is exact in any order."""

    count: int
    sums: tuple[int, int, int]
    squares: tuple[int, int, int]

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.count + other.count,
            _added(self.sums, other.sums),
            _added(self.squares, other.squares),
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        """(3,) of RGB in 0..1; NaN where there is no pixel."""
        return np.array([s / self.count / 255 if self.count else np.nan for s in self.sums])

    @property
    def std(self) -> NDArray[np.float64]:
        """(3,) of RGB in 0..1, of the population; NaN where there is no pixel."""
        pairs = zip(self.sums, self.squares, strict=True)
        n = self.count  # in whole numbers up to the root: the difference of large numbers loses no digit
        return np.array([np.sqrt((n * q - s * s) / n**2) / 255 if n else np.nan for s, q in pairs])


NO_PIXELS = PixelSums(0, (0, 0, 0), (0, 0, 0))


def _added(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def pixel_sums(images: Tensor, tissue: Tensor | None = None) -> PixelSums:
    """images: (n, 3, P, P) uint8 on any device; tissue: (n, P, P) bool, by default everywhere."""
    if images.device.type in _HISTOGRAMS:
        return _sums_of_histograms(images, tissue)
    count = images[:, 0].numel() if tissue is None else int(tissue.sum())
    sums, squares = torch.zeros(2, 3, dtype=torch.int64, device=images.device)
    for i in range(0, len(images), _AT_ONCE):
        wide = images[i : i + _AT_ONCE].to(torch.int32)
        if tissue is not None:
            wide *= tissue[i : i + _AT_ONCE, None]
        sums += wide.sum((0, 2, 3))
        squares += wide.square_().sum((0, 2, 3))
    return PixelSums(count, _three(sums), _three(squares))


def _sums_of_histograms(images: Tensor, tissue: Tensor | None) -> PixelSums:
    """On a CPU ten times as fast as wide integers."""
    histogram = np.zeros((3, 256), np.int64)
    for i, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        mask = None if tissue is None else Image.fromarray(tissue[i].numpy())
        histogram += np.reshape(Image.fromarray(image).histogram(mask), (3, 256))
    values = np.arange(256)
    sums, squares = (torch.from_numpy(histogram @ values**power) for power in (1, 2))
    return PixelSums(int(histogram[0].sum()), _three(sums), _three(squares))


def _three(values: Tensor) -> tuple[int, int, int]:
    a, b, c = values.tolist()
    return a, b, c


@dataclass(frozen=True)
class NormSums:
    """Sums over patches of each batch norm's input: its mean and mean square over a patch, layer after layer."""

    patches: int
    sums: NDArray[np.float64]  # (ΣC,)
    squares: NDArray[np.float64]  # (ΣC,)

    def __add__(self, other: "NormSums") -> "NormSums":
        return NormSums(self.patches + other.patches, self.sums + other.sums, self.squares + other.squares)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(ΣC,); NaN where there is no patch."""
        return self.sums / self.patches if self.patches else np.full(self.sums.shape, np.nan)

    @property
    def variance(self) -> NDArray[np.float64]:
        """(ΣC,); NaN where there is no patch."""
        if not self.patches:
            return np.full(self.sums.shape, np.nan)
        return np.maximum(self.squares / self.patches - self.mean**2, 0)


class NormProbe:
    """A network that is watched at the input of its batch norms. Threads may share one.

    layers: see `norm_layers`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen = threading.local()
        self.layers = norm_layers(model)
        for name in self.layers:
            model.get_submodule(name).register_forward_pre_hook(self._hook(name))

    def look(self, images: Tensor) -> NormSums:
        """images: (n, 3, P, P), normalised."""
        self._seen.moments = {}
        self._model(images)
        found: Mapping[str, Tensor] = self._seen.moments
        unseen = {name: torch.full((2, n), torch.nan, device=images.device) for name, n in self.layers.items()}
        moments = torch.cat(list({**unseen, **found}.values()), 1).double().cpu().numpy()  # (2, ΣC)
        return NormSums(len(images), *(moments * len(images)))

    @property
    def nothing(self) -> NormSums:
        channels = sum(self.layers.values())
        return NormSums(0, np.zeros(channels), np.zeros(channels))

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float()
            self._seen.moments[name] = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])

        return see


def slide_statistics(pixels: PixelSums, norms: NormSums | None, layers: dict[str, int]) -> SlideStatistics:
    """layers: channels by name, of the probe that `norms` come from."""
    nothing = np.full(sum(layers.values()), np.nan)
    return SlideStatistics(
        tissue_pixels=pixels.count,
        pixel_mean=pixels.mean,
        pixel_std=pixels.std,
        norm_patches=norms.patches if norms else 0,
        norm_layers=layers,
        norm_mean=norms.mean if norms else nothing,
        norm_var=norms.variance if norms else nothing,
    )

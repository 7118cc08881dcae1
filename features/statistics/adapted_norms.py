"""CONTRACT `adapted-norms.safetensors` in a folder of feature files: what its slides' batch norms saw (`--adapt-bn`).

Adaptive batch normalisation (Li et al., "Adaptive Batch Normalization for practical domain adaptation", 2018) gives a
frozen network the moments of the new images in the place of those of its training. Nothing else is learned.

Tensors `mean` and `variance`, (ΣC,) float64, of the input to each batch norm, in the order in which they are defined.
Metadata, one JSON text under the key `slidemil`: format, version, weights_sha256 (of the network before), layers
(name → channels), patches and slides (how many were looked at). A file is made once, of evenly spaced patches of all
slides of the request, and taken as it is from then on, so that a job that was killed, and each part of an array job,
embeds with the same network. Features made so have a sha256 of weights of their own, that of the adapted network, and
are therefore never mixed with plain ones.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.encoders import Encoder, freeze, merge_norms
from features.encoders.kept import read_kept, write_kept
from features.encoders.norms import has_batch_norms, norm_layers
from features.statistics.norm_moments import norm_moments
from tiling.jobs.errors import RequestError

FORMAT, VERSION = "slidemil-adapted-norms", 1
FILE = "adapted-norms.safetensors"
ADAPTED = ", adapted batch norms"  # ends the name of the weights


@dataclass(frozen=True)
class AdaptedNorms:
    """Moments (ΣC,) of the batch norms' inputs, layer by layer, each behind layers that have theirs already."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    layers: dict[str, int]
    weights_sha256: str
    patches: int
    slides: int


def estimate_norms(encoder: Encoder, batches: Iterable[Tensor], device: torch.device, slides: int = 0) -> AdaptedNorms:
    """From batches of images (n, 3, P, P) uint8, each normalised by its own moments on the way through the network.

    A batch should hold patches of many slides, so that it stands for all of them. slides: how many they are of.
    """
    seen = norm_moments(encoder, batches, device, renormalise=True)
    return AdaptedNorms(seen.mean, seen.variance, seen.layers, encoder.weights_sha256, seen.patches, slides)


def adapt(encoder: Encoder, norms: AdaptedNorms) -> Encoder:
    """The encoder with these moments in its batch norms. Raises RequestError where they are another network's."""
    require_fitting(norms, encoder, Path(FILE))
    assert encoder.unmerged is not None
    model, start = copy.deepcopy(encoder.unmerged), 0
    for name, channels in norms.layers.items():
        module = model.get_submodule(name)
        for buffer, values in (("running_mean", norms.mean), ("running_var", norms.variance)):
            module.get_buffer(buffer).copy_(torch.from_numpy(values[start : start + channels]))
        start += channels
    adapted = freeze(
        encoder.name, model, encoder.weights + ADAPTED, 0, dim=encoder.dim, preprocessing=encoder.preprocessing
    )
    return adapted if has_batch_norms(encoder.model) else merge_norms(adapted)


def require_fitting(norms: AdaptedNorms, encoder: Encoder, path: Path) -> None:
    """Raises RequestError where `norms`, of the file `path`, are not of this very network."""
    if norms.weights_sha256 != encoder.weights_sha256 or norms.layers != norm_layers(encoder.unmerged):
        raise RequestError(
            f"{path}: batch norms of another network (weights {norms.weights_sha256[:12]}) than {encoder.name}, "
            f"{encoder.weights} ({encoder.weights_sha256[:12]}); "
            "use the encoder that they were made with, or another --out"
        )


def write_norms(path: Path, norms: AdaptedNorms) -> None:
    tensors = {"mean": norms.mean, "variance": norms.variance}
    write_kept(path, (FORMAT, VERSION), tensors, {key: of for key, of in vars(norms).items() if key not in tensors})


def read_norms(path: Path) -> AdaptedNorms:
    """Raises RequestError unless it is a file of adapted norms of a version that is known."""
    tensors, known = read_kept(path, (FORMAT, VERSION), "--adapt-bn")
    return AdaptedNorms(tensors["mean"], tensors["variance"], **known)

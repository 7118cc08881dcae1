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
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.config import FeatureConfig
from features.device import pick_devices
from features.encoders import Encoder, freeze
from features.encoders.norms import has_batch_norms, norm_layers
from features.encoders.preprocess import prepare
from features.patch_source import patches_of
from features.statistics.slide import NormSums
from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import Locked, lock
from tiling.jobs.provenance import check_format
from tiling.manifest import SlideRow
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore

FORMAT, VERSION = "slidemil-adapted-norms", 1
FILE = "adapted-norms.safetensors"
ADAPTED = ", adapted batch norms"  # ends the name of the weights
PATCHES = 512  # in all, at least one a slide; moments of halves of them agree to a few per cent
_AT_ONCE_PX = 8 * 512**2  # of one step, whose patches are of many slides
_POLL_S = 2.0


@dataclass(frozen=True)
class AdaptedNorms:
    """Moments (ΣC,) of the batch norms' inputs, layer by layer, each behind layers that have theirs already."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    layers: dict[str, int]
    weights_sha256: str
    patches: int
    slides: int


def keep_norms(
    rows: Sequence[SlideRow], encoder: Encoder, config: FeatureConfig, patches: Path, out: Path
) -> AdaptedNorms:
    """What is stored in `out`, or else estimated on `rows` and stored; other jobs wait. Raises RequestError."""
    path = out / FILE
    while True:
        with suppress(Locked), lock(path):
            if not path.exists() or config.overwrite:
                _write(path, _estimate(rows, encoder, config, patches))
            norms = read_norms(path)
            _require_fitting(norms, encoder, path)
            print(f"extract-features: batch norms of {norms.patches} patches of {norms.slides} slide(s)", flush=True)
            return norms
        time.sleep(_POLL_S)


def adapt(encoder: Encoder, norms: AdaptedNorms) -> Encoder:
    """The encoder with these moments in its batch norms. Raises RequestError where they are another network's."""
    _require_fitting(norms, encoder, Path(FILE))
    assert encoder.unmerged is not None
    model, start = copy.deepcopy(encoder.unmerged), 0
    for name, channels in norms.layers.items():
        module = model.get_submodule(name)
        for buffer, values in (("running_mean", norms.mean), ("running_var", norms.variance)):
            module.get_buffer(buffer).copy_(torch.from_numpy(values[start : start + channels]))
        start += channels
    return freeze(
        encoder.name,
        model,
        encoder.weights + ADAPTED,
        0,
        dim=encoder.dim,
        mean=encoder.mean,
        std=encoder.std,
        input_px=encoder.input_px,
        min_px=encoder.min_px,
        interpolation=encoder.interpolation,
        fold_norms=not has_batch_norms(encoder.model),
    )


def estimate_norms(encoder: Encoder, steps: Iterator[Tensor] | Sequence[Tensor], device: torch.device) -> NormSums:
    """Sums of moments over steps of images (n, 3, P, P) uint8, each normalised by the step's own moments on the way.

    A step should hold patches of many slides, so that it stands for all of them.
    """
    assert encoder.unmerged is not None
    model = copy.deepcopy(encoder.unmerged).to(device)
    layers = norm_layers(model)
    seen: dict[str, Tensor] = {}

    def renormalise(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float()
            mean, square = x.mean((0, 2, 3)), x.square().mean((0, 2, 3))
            seen[name] = torch.stack([mean, square]).double()
            module.get_buffer("running_mean").copy_(mean)
            module.get_buffer("running_var").copy_((square - mean.square()).clamp_min(0))

        return see

    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(renormalise(name))
    channels = sum(layers.values())
    total = NormSums(0, np.zeros(channels), np.zeros(channels))
    for images in steps:
        with torch.inference_mode():
            model(prepare(encoder, images.to(device), encoder.input_px or images.shape[-1]))
        moments = torch.cat([seen[name] for name in layers], 1).cpu().numpy() * len(images)
        total = total + NormSums(len(images), moments[0], moments[1])
    return total


def _estimate(rows: Sequence[SlideRow], encoder: Encoder, config: FeatureConfig, patches: Path) -> AdaptedNorms:
    if encoder.unmerged is None:
        raise RequestError(f"--adapt-bn: {encoder.name} has no batch norms to adapt; leave the flag out")
    samples = list(_samples(rows, patches, max(1, PATCHES // len(rows))))
    if not samples:
        raise RequestError(f"--adapt-bn: no patch can be read from the stores in {patches}")
    sides = {pixels.shape[1] for pixels in samples}
    if len(sides) > 1:
        raise RequestError(f"--adapt-bn: patches have different sides ({sorted(sides)} px); tile them with one")
    pixels = np.concatenate(samples)
    order = np.random.default_rng(0).permutation(len(pixels))
    steps = np.array_split(order, max(1, len(order) * (encoder.input_px or min(sides)) ** 2 // _AT_ONCE_PX))
    batches = (torch.from_numpy(pixels[step]).permute(0, 3, 1, 2) for step in steps)
    sums = estimate_norms(encoder, batches, pick_devices(config.device)[0])
    layers = norm_layers(encoder.unmerged)
    return AdaptedNorms(sums.mean, sums.variance, layers, encoder.weights_sha256, sums.patches, len(samples))


def _samples(rows: Sequence[SlideRow], patches: Path, each: int) -> Iterator[Pixels]:
    """Evenly spaced patches (n, P, P, 3) of each slide that can be read; the others fail when their turn comes."""
    for row in sorted(rows, key=lambda row: row.slide_id):
        with suppress(SlideError):
            store = PatchStore(patches / f"{row.slide_id}.zarr")
            if len(store):
                with patches_of(store, row.path) as source:
                    yield source.read(evenly_spaced(len(store), each))


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices 0..count - 1, in the middles of equal parts."""
    parts = min(wanted, count)
    return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]


def _require_fitting(norms: AdaptedNorms, encoder: Encoder, path: Path) -> None:
    if norms.weights_sha256 != encoder.weights_sha256 or norms.layers != norm_layers(encoder.unmerged):
        raise RequestError(
            f"{path}: batch norms of another network (weights {norms.weights_sha256[:12]}) than {encoder.name}, "
            f"{encoder.weights} ({encoder.weights_sha256[:12]}); "
            "use the encoder that they were made with, or another --out"
        )


def _write(path: Path, norms: AdaptedNorms) -> None:
    tensors = {"mean": norms.mean, "variance": norms.variance}
    known = {key: value for key, value in vars(norms).items() if key not in tensors}
    metadata = {"slidemil": json.dumps({"format": FORMAT, "version": VERSION, **known})}
    with atomic_file(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata)


def read_norms(path: Path) -> AdaptedNorms:
    """Raises RequestError unless it is a file of adapted norms of a version that is known."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            known = json.loads((file.metadata() or {}).get("slidemil", "{}"))
            check_format(known, FORMAT, VERSION, path)
            mean, variance = file.get_tensor("mean"), file.get_tensor("variance")
    except (OSError, safetensors.SafetensorError, SlideError) as error:
        raise RequestError(f"{path}: not the statistics that --adapt-bn keeps ({error})") from error
    keys = ("layers", "weights_sha256", "patches", "slides")
    return AdaptedNorms(mean, variance, **{key: known[key] for key in keys})

"""Patches in, embeddings out: a frozen encoder on one or more devices, none of which waits.

What its batch norms see is found by the same way, in a second pass over a few patches of a slide.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.config import EmbedSettings
from features.embed.arithmetic import best_precision, cast_weights, computing_in, exact_arithmetic
from features.embed.device import pick_devices
from features.embed.engines import Run, engine_runs, engine_version, pick_engine
from features.embed.lanes import Lane, Lanes
from features.embed.patch_source import PatchSource, in_memory
from features.embed.queues import AtOnce, Cuda, Network
from features.embed.rows import Look
from features.encoders import Encoder
from features.encoders.norms import norm_layers
from features.statistics.norm_moments import NormInputs, NormMoments, moments_of, no_moments
from tiling.jobs.errors import SlideError
from tiling.slides.slide import Pixels

_CPU_BATCH = 4  # on one core; larger ones fall out of its caches and are slower
_CUDA_BATCH = 128
_CPU_NORMS, _CUDA_NORMS = 1, 8  # of those few patches that batch norms are shown
_THREADS = 16  # at most


class Embedder:
    """An encoder on its devices, its arithmetic and batch size chosen. Raises RequestError where it cannot run."""

    def __init__(self, encoder: Encoder, settings: EmbedSettings = EmbedSettings()) -> None:
        if settings.input_px and settings.input_px != encoder.preprocessing.input_px:
            encoder.require_input_px(settings.input_px)
        self.encoder = encoder
        self.devices = pick_devices(settings.device)
        self.device = self.devices[0]
        on_cpu = self.device.type == "cpu"
        self.precision = best_precision(self.device) if settings.precision == "auto" else settings.precision
        engine = pick_engine(settings.engine, encoder.model, self.device, self.precision)
        default_batch = _CPU_BATCH if on_cpu else _CUDA_BATCH
        self.batch_size = default_batch if settings.batch_size == "auto" else settings.batch_size
        self.side = settings.input_px or encoder.preprocessing.input_px  # of images; 0: that of the patches
        threads = min(_THREADS, len(os.sched_getaffinity(0)))
        each = threads if on_cpu else 1
        self.lanes = each * len(self.devices)
        self._decoders = ThreadPoolExecutor(threads)
        run = partial(engine_runs, encoder, engine, precision=self.precision, side=self.side)
        self.networks = self._networks(lambda device: run(device, lanes=each))  # one for each lane
        self._features = self.lanes_for(self.networks, self.batch_size, encoder.dim)
        self._layers = norm_layers(encoder.unmerged)
        norms = self._networks(lambda device: [self._norm_inputs(device)] * each)
        at_once = _CPU_NORMS if on_cpu else _CUDA_NORMS
        self._norms = self.lanes_for(norms, at_once, 2 * sum(self._layers.values()))
        self.engine = engine_version(engine, self.device)

    def input_px(self, patch_size_px: int) -> int:
        """Side of the image that the network sees. Raises SlideError where it is too small for the network."""
        side, least = self.side or patch_size_px, self.encoder.preprocessing.min_px
        if side < least:
            raise SlideError(
                f"{self.encoder.name} needs images of at least {least} px and gets {side}; "
                "use larger patches, another --encoder, or --input-px"
            )
        return side

    def embed(self, patches: PatchSource, look: Look | None = None) -> NDArray[np.float32]:
        """(N, D) of all patches of a slide. Threads may do several slides at once.

        look: is shown the patches as they are read.
        """
        self.input_px(patches.side)
        return self._features.values(patches, look)

    def norm_moments(self, patches: PatchSource) -> NormMoments:
        """What the encoder's batch norms see of these patches."""
        return moments_of(self._layers, self._norms.values(patches)) if self._layers else no_moments({})

    def lanes_for(self, networks: Sequence[Network], size: int, dim: int) -> Lanes:
        """All lanes of its devices, for networks of D outputs, one each."""
        devices = [device for device in self.devices for _ in range(self.lanes // len(self.devices))]
        queues = [AtOnce() if device.type == "cpu" else Cuda(device) for device in devices]
        return Lanes([Lane(*lane) for lane in zip(queues, networks, strict=True)], size, dim, self._decoders)

    def _networks(self, runs: Callable[[torch.device], list[Run]]) -> list[Network]:
        return [partial(self._compute, run) for device in self.devices for run in runs(device)]

    def _norm_inputs(self, device: torch.device) -> NormInputs:
        inputs = NormInputs(self.encoder, device)
        if inputs.model is not None:
            cast_weights(inputs.model, self.precision)
        return inputs

    def _compute(self, run: Run, pixels: Tensor) -> Tensor:
        """(n, P, P, 3) uint8 → (n, D) float32."""
        images = pixels.permute(0, 3, 1, 2)  # n, 3, P, P in channels_last
        prepared = self.encoder.preprocessing.apply(images, self.input_px(images.shape[-1]))
        with computing_in(self.precision, self.device):
            return run(prepared).float()


class Together:
    """Several encoders of one request, each of which sees a batch of patches while it is there.

    The batches are those that each would have alone, and so are the features.
    """

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        self._embedders, first = embedders, embedders[0]
        self._dims = [embedder.encoder.dim for embedder in embedders]
        networks = [partial(_each, lane) for lane in zip(*(e.networks for e in embedders), strict=True)]
        self._features = first.lanes_for(networks, first.batch_size, sum(self._dims))
        self.lanes, self.at_once = first.lanes, first.lanes * first.batch_size  # patches that are computed at once

    def embed(self, patches: PatchSource, look: Look | None = None) -> list[NDArray[np.float32]]:
        """(N, D) of each encoder; else as `Embedder.embed`."""
        for embedder in self._embedders:
            embedder.input_px(patches.side)
        values = self._features.values(patches, look)
        return np.split(values, np.cumsum(self._dims)[:-1], axis=1)


def _each(networks: Sequence[Network], pixels: Tensor) -> Tensor:
    return torch.cat([network(pixels) for network in networks], 1)


def embed(encoder: Encoder, patches: Pixels, settings: EmbedSettings = EmbedSettings()) -> NDArray[np.float32]:
    """Features of patches in memory: (N, P, P, 3) uint8 RGB → (N, D) float32."""
    embedder = Embedder(encoder, settings)
    with exact_arithmetic(embedder.lanes):
        return embedder.embed(in_memory(patches))

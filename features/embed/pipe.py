"""Patches in, embeddings out: a frozen encoder on one or more devices, none of which waits.

A lane is what does one batch at a time: a core of a CPU (cores that share one batch wait for each other), or one of
two streams of a GPU, so that one batch is copied while the other is computed. Slides that are embedded at the same
time share the lanes, and threads decode ahead for all of them: between slides nothing runs empty.

A batch never holds patches of two slides, so a slide's embeddings do not depend on its neighbours in the list.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.config import EmbedSettings
from features.embed.arithmetic import best_precision, computing_in, exact_arithmetic
from features.embed.decode import Decoder, decode_on_gpu
from features.embed.device import pick_devices
from features.embed.engines import Run, openvino_runs, torch_run
from features.embed.patch_source import PatchSource, in_memory
from features.encoders import Encoder
from features.encoders.norms import norm_layers
from features.statistics.by_products import NORM_EVERY, ByProducts, no_by_products
from features.statistics.colours import pixel_sums
from features.statistics.norm_moments import NormCollector
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.listener import SILENT
from tiling.jobs.threads import ordered_map
from tiling.slides.slide import Pixels

_CPU_BATCH = 4  # on one core; larger ones fall out of its caches and are slower
_CUDA_BATCH = 128
_STREAMS = 2  # of a GPU
_THREADS = 16  # at most
_DECODED_AT_ONCE = 8  # patches by one thread, where threads decode for a GPU


@dataclass(frozen=True)
class Embedded:
    """One batch: embeddings (n, D) float32, and the by-products of its patches."""

    features: NDArray[np.float32]
    by_products: ByProducts


@dataclass(frozen=True)
class _Lane:
    device: torch.device
    run: Run
    norms: NormCollector
    stream: torch.cuda.Stream | None


class Embedder:
    """An encoder on its devices, its arithmetic and batch size chosen. Raises RequestError where it cannot run."""

    def __init__(
        self, encoder: Encoder, settings: EmbedSettings = EmbedSettings(), say: Callable[[str], None] = SILENT.say
    ) -> None:
        if settings.input_px and settings.input_px != encoder.preprocessing.input_px:
            encoder.require_input_px(settings.input_px)
        self.encoder = encoder
        self.settings = settings
        self.devices = pick_devices(settings.device)
        self.device = self.devices[0]
        self.precision = best_precision(self.device) if settings.precision == "auto" else settings.precision
        default_batch = _CPU_BATCH if self.device.type == "cpu" else _CUDA_BATCH
        self.batch_size = default_batch if settings.batch_size == "auto" else settings.batch_size
        self.nothing = no_by_products(norm_layers(encoder.unmerged))  # to add those of batches to
        self._input_px = settings.input_px or encoder.preprocessing.input_px
        self._cores = len(os.sched_getaffinity(0))
        self._decoder = Decoder(settings.decode, self.device, say)
        self._decoders = ThreadPoolExecutor(min(_THREADS, self._cores))
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        self.lanes = 0
        for device in self.devices:
            for lane in self._lanes_on(device):
                self._lanes.put(lane)
                self.lanes += 1

    def input_px(self, patch_size_px: int) -> int:
        """Side of the image that the network sees. Raises SlideError where it is too small for the network."""
        side, least = self._input_px or patch_size_px, self.encoder.preprocessing.min_px
        if side < least:
            raise SlideError(
                f"{self.encoder.name} needs images of at least {least} px and gets {side}; "
                "use larger patches, another --encoder, or --input-px"
            )
        return side

    def embed(self, patches: PatchSource) -> Iterator[Embedded]:
        """All patches of a slide, batch by batch, in order. Threads may do several slides at once."""
        size = self.batch_size
        batches = [range(start, min(start + size, patches.count)) for start in range(0, patches.count, size)]
        yield from ordered_map(lambda batch: self._embed_batch(patches, batch), batches, self.lanes + 1)

    def _embed_batch(self, patches: PatchSource, batch: range) -> Embedded:
        if self.device.type == "cpu":
            with self._lane() as lane:
                return self._in_steps(lane, torch.from_numpy(patches.read(batch)), patches, batch)
        if patches.read_jpeg and self._decoder.on_gpu(patches, self._decoders):
            jpegs = patches.read_jpeg(batch)
            with self._lane() as lane:
                return self._in_steps(lane, decode_on_gpu(jpegs, patches, batch, lane.device), patches, batch)
        pixels = torch.empty((len(batch), patches.side, patches.side, 3), dtype=torch.uint8, pin_memory=True)
        self._decode(patches, batch, pixels.numpy())
        with self._lane() as lane:
            return self._in_steps(lane, pixels.to(lane.device, non_blocking=True), patches, batch)

    def _decode(self, patches: PatchSource, batch: range, out: Pixels) -> None:
        """Fill out (n, P, P, 3) on the threads that all slides share."""

        def fill(start: int) -> None:
            part = batch[start : start + _DECODED_AT_ONCE]
            out[start : start + len(part)] = patches.read(part)

        list(self._decoders.map(fill, range(0, len(batch), _DECODED_AT_ONCE)))

    def _in_steps(self, lane: _Lane, pixels: Tensor, patches: PatchSource, batch: range) -> Embedded:
        """`_forward` of a batch (n, P, P, 3), in smaller steps where GPU memory does not hold all.

        The batches that follow are smaller then.
        """
        step = len(batch)
        while True:
            try:
                starts = range(0, len(batch), step)
                return _joined(
                    [self._forward(lane, pixels[i : i + step], patches, batch[i : i + step]) for i in starts]
                )
            except torch.OutOfMemoryError as error:
                if step == 1:
                    raise SlideError(f"one patch of {patches.side} px does not fit the GPU's memory") from error
                step = (step + 1) // 2
                self.batch_size = min(self.batch_size, step)

    @torch.inference_mode()
    def _forward(self, lane: _Lane, pixels: Tensor, patches: PatchSource, batch: range) -> Embedded:
        images = pixels.permute(0, 3, 1, 2)  # n, 3, P, P in channels_last
        colours = pixel_sums(images, _tissue(patches, batch, lane.device))
        prepared = self.encoder.preprocessing.apply(images, self.input_px(images.shape[-1]))
        with computing_in(self.precision, self.device):
            features = lane.run(prepared)
            shown = [i for i, index in enumerate(batch) if index % NORM_EVERY == 0]
            norms = lane.norms.look(prepared[shown])
        return Embedded(features.float().cpu().numpy(), ByProducts(colours, norms))

    def _lanes_on(self, device: torch.device) -> list[_Lane]:
        """All of one device, which share the network."""
        encoder, engine = self.encoder, self.settings.engine
        norms = NormCollector(encoder, device)
        lanes = min(_THREADS, self._cores)
        if engine == "openvino":
            if device.type != "cpu":
                raise RequestError(f"--engine openvino computes on the CPU, not on {device}; use --engine torch")
            runs = openvino_runs(encoder.model, self._input_px, self.precision, lanes)
            return [_Lane(device, run, norms, None) for run in runs]
        run = torch_run(encoder.model, engine, device, self.precision)
        if device.type == "cpu":
            return [_Lane(device, run, norms, None)] * lanes
        return [_Lane(device, run, norms, torch.cuda.Stream(device)) for _ in range(_STREAMS)]

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._lanes.get()
        try:
            with torch.cuda.stream(lane.stream):  # of None: nothing
                yield lane
        finally:
            self._lanes.put(lane)


def embed(encoder: Encoder, patches: Pixels, settings: EmbedSettings = EmbedSettings()) -> NDArray[np.float32]:
    """Features of patches in memory: (N, P, P, 3) uint8 RGB → (N, D) float32."""
    embedder = Embedder(encoder, settings)
    with exact_arithmetic(embedder.lanes):
        rows = [batch.features for batch in embedder.embed(in_memory(patches))]
    return np.concatenate([np.empty((0, encoder.dim), np.float32), *rows])


def _joined(parts: list[Embedded]) -> Embedded:
    features = parts[0].features if len(parts) == 1 else np.concatenate([part.features for part in parts])
    return Embedded(features, reduce(add, (part.by_products for part in parts)))


def _tissue(patches: PatchSource, batch: range, device: torch.device) -> Tensor | None:
    if patches.tissue is None:
        return None
    where = patches.tissue(batch)
    mask, rows, columns = (torch.from_numpy(v).to(device) for v in (where.mask, where.rows, where.columns))
    return mask[rows[:, :, None], columns[:, None, :]]

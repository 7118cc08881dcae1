"""Patches in, embeddings out: a frozen encoder on one or more devices, none of which waits.

A lane is what does one batch at a time: a core of a CPU (cores that share one batch wait for each other), or one of
two streams of a GPU, so that one batch is copied while the other is computed. Slides that are embedded at the same
time share the lanes, and threads decode ahead for all of them: between slides nothing runs empty.

A batch never holds patches of two slides, so a slide's embeddings do not depend on its neighbours in the list.
"""

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.device import pick_devices
from features.embed.decode import Decoder, decode_on_gpu
from features.embed.openvino_engine import openvino_lanes
from features.encoders import Encoder
from features.encoders.preprocess import prepare
from features.patch_source import PatchSource, in_memory
from features.statistics.slide import NORM_EVERY, NormProbe, NormSums, PixelSums, pixel_sums
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.threads import ordered_map
from tiling.slides.slide import Pixels

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_BATCH = 4  # on one core; larger ones fall out of its caches and are slower
_CUDA_BATCH = 128
_STREAMS = 2  # of a GPU
_THREADS = 16  # at most
_DECODED_AT_ONCE = 8  # patches by one thread, where threads decode for a GPU


@dataclass(frozen=True)
class Embedded:
    """One batch: embeddings (n, D) float32, and the by-products of its patches."""

    features: NDArray[np.float32]
    pixels: PixelSums
    norms: NormSums | None  # of every 64th patch; None where the encoder has no batch norm


@dataclass(frozen=True)
class _Lane:
    device: torch.device
    model: Callable[[Tensor], Tensor]
    probe: NormProbe | None
    stream: torch.cuda.Stream | None


class Embedder:
    """An encoder on its devices, its arithmetic and batch size chosen. Raises RequestError where it cannot run."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | Literal["auto"] = "auto",
        input_px: int = 0,
        decode: Literal["auto", "cpu", "gpu"] = "auto",
        engine: Literal["torch", "compile", "openvino"] = "torch",
    ) -> None:
        if input_px and input_px != encoder.input_px:
            encoder.require_input_px(input_px)
        self.encoder = encoder
        self.devices = pick_devices(device)
        self.device = self.devices[0]
        self.precision = _best_precision(self.device) if precision == "auto" else precision
        default_batch = _CPU_BATCH if self.device.type == "cpu" else _CUDA_BATCH
        self.batch_size: int = default_batch if batch_size == "auto" else batch_size  # halved when memory is full
        self.decoder = Decoder(decode, self.device)
        self._input_px = input_px or encoder.input_px
        self._cores = len(os.sched_getaffinity(0))
        self._decoders = ThreadPoolExecutor(min(_THREADS, self._cores))
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        self.lanes = 0
        for where in self.devices:
            for lane in self._lanes_on(where, engine):
                self._lanes.put(lane)
                self.lanes += 1

    def input_px(self, patch_size_px: int) -> int:
        """Side of the image that the network sees. Raises SlideError where it is too small for the network."""
        side = self._input_px or patch_size_px
        if side < self.encoder.min_px:
            raise SlideError(
                f"{self.encoder.name} needs images of at least {self.encoder.min_px} px and gets {side}; "
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
        if patches.read_jpeg and self.decoder.on_gpu(patches, self._decoders):
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
        """`_forward` of a batch (n, P, P, 3), in smaller steps where GPU memory does not hold all."""
        step = len(batch)
        while True:
            try:
                parts = [
                    self._forward(lane, pixels[i : i + step], patches, batch[i : i + step])
                    for i in range(0, len(batch), step)
                ]
                return _joined(parts)
            except torch.OutOfMemoryError as error:
                if step == 1:
                    raise SlideError(f"one patch of {patches.side} px does not fit the GPU's memory") from error
                step = (step + 1) // 2
                self.batch_size = min(self.batch_size, step)

    @torch.inference_mode()
    def _forward(self, lane: _Lane, pixels: Tensor, patches: PatchSource, batch: range) -> Embedded:
        images = pixels.permute(0, 3, 1, 2)  # n, 3, P, P in channels_last
        colours = pixel_sums(images, _tissue(patches, batch, lane.device))
        prepared = prepare(self.encoder, images, self.input_px(images.shape[-1]))
        with self._precision():
            features = lane.model(prepared)
            norms = _norms(lane.probe, prepared, batch)
        return Embedded(features.float().cpu().numpy(), colours, norms)

    def _precision(self) -> torch.autocast | nullcontext[None]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def _lanes_on(self, device: torch.device, engine: str) -> list[_Lane]:
        """All of one device, which share the network."""
        model, unmerged = self.encoder.model, self.encoder.unmerged
        dtype = _AUTOCAST.get(self.precision)
        if engine != "openvino" and (dtype or len(self.devices) > 1):
            model = copy.deepcopy(model)
        if engine != "openvino" and dtype:
            _cast_weights(model, dtype)
        model = model.to(device).to(memory_format=torch.channels_last)
        probe = None
        if unmerged is not None:
            probe = NormProbe(copy.deepcopy(unmerged).to(device).to(memory_format=torch.channels_last))
        lanes = min(_THREADS, self._cores)
        if engine == "openvino":
            if device.type != "cpu":
                raise RequestError(f"--engine openvino computes on the CPU, not on {device}; use --engine torch")
            runs = openvino_lanes(model, self._input_px, self.precision, lanes)
            return [_Lane(device, run, probe, None) for run in runs]
        run: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False) if engine == "compile" else model
        if device.type == "cpu":
            return [_Lane(device, run, probe, None)] * lanes
        return [_Lane(device, run, probe, torch.cuda.Stream(device)) for _ in range(_STREAMS)]

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._lanes.get()
        try:
            with torch.cuda.stream(lane.stream):  # of None: nothing
                yield lane
        finally:
            self._lanes.put(lane)


def _joined(parts: list[Embedded]) -> Embedded:
    if len(parts) == 1:
        return parts[0]
    pixels, norms = parts[0].pixels, parts[0].norms
    for part in parts[1:]:
        pixels = pixels + part.pixels
        norms = norms + part.norms if norms and part.norms else None
    return Embedded(np.concatenate([part.features for part in parts]), pixels, norms)


def _norms(probe: NormProbe | None, prepared: Tensor, batch: range) -> NormSums | None:
    if probe is None:
        return None
    looked_at = [i for i, index in enumerate(batch) if index % NORM_EVERY == 0]
    return probe.look(prepared[looked_at]) if looked_at else probe.nothing


def _tissue(patches: PatchSource, batch: range, device: torch.device) -> Tensor | None:
    if patches.tissue is None:
        return None
    where = patches.tissue(batch)
    mask, rows, columns = (torch.from_numpy(v).to(device) for v in (where.mask, where.rows, where.columns))
    return mask[rows[:, :, None], columns[:, None, :]]


def _cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Autocast would cast the weights of a frozen network again for each batch."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


@contextmanager
def exact_arithmetic(embedder: Embedder) -> Iterator[None]:
    """While slides are embedded: one core a lane, and the same results again on the same GPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // embedder.lanes))
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


def embed(
    encoder: Encoder,
    patches: Pixels,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    input_px: int = 0,
    engine: Literal["torch", "compile", "openvino"] = "torch",
) -> NDArray[np.float32]:
    """Features of patches in memory: (N, P, P, 3) uint8 RGB → (N, D) float32."""
    embedder = Embedder(
        encoder, device=device, precision=precision, batch_size=batch_size, input_px=input_px, engine=engine
    )
    with exact_arithmetic(embedder):
        rows = [batch.features for batch in embedder.embed(in_memory(patches))]
    return np.concatenate([np.empty((0, encoder.dim), np.float32), *rows])


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if fast else "fp32"

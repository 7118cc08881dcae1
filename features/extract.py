"""Patch stores to feature files: decode, normalise, run the encoder, write."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

from features.config import FeatureConfig
from features.device import pick_device
from features.embeddings import EmbeddingInfo, Embeddings, read_info, stored_dtype, write_embeddings
from features.encoders import Encoder, load_encoder
from tiling.artifact import lock, require_same
from tiling.batch import Outcome, run_batch
from tiling.errors import RequestError, SlideError
from tiling.manifest import SlideRow, load_table, select_part
from tiling.patches import PatchStore
from tiling.reference import patches_of_slide
from tiling.slide import Pixels
from tiling.threads import ordered_map

ReadPatches = Callable[[Sequence[int]], Pixels]  # indices → (n, P, P, 3) uint8 RGB, thread-safe
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_BATCH = 4  # on one core; larger ones fall out of its caches and are slower
_CUDA_BATCH = 128
_THREADS = 16  # at most


class Embedder:
    """An encoder on a device, its arithmetic and batch size chosen. Raises RequestError where it cannot run."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | Literal["auto"] = "auto",
        input_px: int = 0,
    ) -> None:
        if input_px and input_px != encoder.input_px:
            encoder.require_input_px(input_px)
        self.encoder = encoder
        self.device = pick_device(device)
        self.precision = _best_precision(self.device) if precision == "auto" else precision
        default_batch = _CPU_BATCH if self.device.type == "cpu" else _CUDA_BATCH
        self.batch_size: int = default_batch if batch_size == "auto" else batch_size  # halved when memory is full
        self._input_px = input_px or encoder.input_px
        self._model = encoder.model.to(self.device).to(memory_format=torch.channels_last)

    def input_px(self, patch_size_px: int) -> int:
        """Side of the image that the network sees. Raises SlideError where it is too small for the network."""
        side = self._input_px or patch_size_px
        if side < self.encoder.min_px:
            raise SlideError(
                f"{self.encoder.name} needs images of at least {self.encoder.min_px} px and gets {side}; "
                "use larger patches, another --encoder, or --input-px"
            )
        return side

    def embed(self, read: ReadPatches, count: int) -> Iterator[NDArray[np.float32]]:
        """Features (n, D) batch by batch, in order, of the patches that `read(indices)` gives.

        A CPU does several batches at once, each on a core of its own: cores that share one batch wait for each
        other. For a GPU, threads decode ahead.
        """
        cores = len(os.sched_getaffinity(0))
        threads = min(_THREADS, cores)
        size = self.batch_size
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        if self.device.type == "cpu":
            with _cores_per_batch(cores // threads):
                yield from ordered_map(lambda batch: self._embed_batch(read(batch)), batches, threads)
        else:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                yield from map(self._embed_batch, ordered_map(read, batches, threads))

    def _embed_batch(self, patches: Pixels) -> NDArray[np.float32]:
        """(n, P, P, 3) uint8 RGB → (n, D) float32, in smaller steps where GPU memory does not hold all."""
        step = len(patches)
        while True:
            try:
                rows = [self._forward(patches[i : i + step]) for i in range(0, len(patches), step)]
                return np.concatenate(rows)
            except torch.OutOfMemoryError as error:
                if step == 1:
                    raise SlideError(f"one patch of {patches.shape[1]} px does not fit the GPU's memory") from error
                step = self.batch_size = (step + 1) // 2

    @torch.inference_mode()
    def _forward(self, patches: Pixels) -> NDArray[np.float32]:
        encoder, side = self.encoder, self.input_px(patches.shape[1])
        images = torch.from_numpy(patches).to(self.device).permute(0, 3, 1, 2)  # n, 3, P, P in channels_last
        if side != images.shape[-1]:
            images = transform.resize(images, [side, side], InterpolationMode(encoder.interpolation), antialias=True)
        images = transform.to_dtype(images, torch.float32, scale=True)
        images = transform.normalize(images, list(encoder.mean), list(encoder.std))
        with self._arithmetic():
            features: Tensor = self._model(images)
        return features.float().cpu().numpy()

    def _arithmetic(self) -> torch.autocast | nullcontext[None]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()


@contextmanager
def _cores_per_batch(cores: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
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
) -> NDArray[np.float32]:
    """Features of patches in memory: (N, P, P, 3) uint8 RGB → (N, D) float32."""
    embedder = Embedder(encoder, device=device, precision=precision, batch_size=batch_size, input_px=input_px)
    rows = embedder.embed(lambda batch: patches[batch], len(patches))
    return np.concatenate([np.empty((0, encoder.dim), np.float32), *rows])


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if fast else "fp32"


def find_stores(patches: Path, table: str, part: str) -> list[SlideRow]:
    """The slides to embed: all stores of the folder, or those of the table. Raises RequestError."""
    if not patches.is_dir():
        raise RequestError(f"{patches}: no such folder; expected the --out folder of tile-slides")
    if patches.suffix == ".zarr":
        raise RequestError(f"{patches} is one patch store; give its folder, and --slides TABLE to pick from it")
    stores = sorted(patches.glob("*.zarr"))
    if not stores:
        raise RequestError(f"{patches}: no patch store (<slide_id>.zarr) in this folder; make them with tile-slides")
    rows = [SlideRow(store.stem) for store in stores]
    if table:
        rows = load_table(Path(table), needs_path=False)
    return select_part(rows, part) if part else rows


def extract_features(rows: Sequence[SlideRow], config: FeatureConfig, patches: Path, out: Path) -> int:
    """Embed the stores `patches/<slide_id>.zarr` into `out`; return the exit code. Raises RequestError."""
    embedder = _embedder(config)
    encoder = embedder.encoder
    print(
        f"extract-features: {encoder.name}, weights {encoder.weights} (sha256 {encoder.weights_sha256[:12]}), "
        f"{embedder.device} {embedder.precision}, batch {embedder.batch_size}, {len(rows)} slide(s)",
        flush=True,
    )
    work = functools.partial(extract_slide, config=config, patches=patches, out=out)
    return run_batch(rows, work, out=out, verb="extract-features", scheduler=config.scheduler, part=config.part)


def extract_slide(row: SlideRow, config: FeatureConfig, patches: Path, out: Path) -> Outcome:
    """Write one slide's features, or skip it where the same features are there. Raises SlideError."""
    path = out / f"{row.slide_id}.h5"
    with lock(path):
        store, embedder = PatchStore(patches / f"{row.slide_id}.zarr"), _embedder(config)
        info = _info(store, row.slide_id, embedder)
        if path.exists() and not config.overwrite:
            _require_same(path, info, config.features_dtype)
            return Outcome(row.slide_id, "skipped", "already done", len(store))
        with _pixels(store, row.path) as read:
            features = _features(read, len(store), embedder, config.features_dtype)
        write_embeddings(path, Embeddings(features, store.coords_l0, info))
    if len(store) == 0:
        return Outcome(row.slide_id, "empty", "its patch store holds no patch")
    return Outcome(row.slide_id, "done", patches=len(store))


@functools.lru_cache(maxsize=1)
def _embedder(config: FeatureConfig) -> Embedder:
    """One network a process, also in the workers of a Dask cluster."""
    return Embedder(
        load_encoder(config.encoder, config.weights, config.seed),
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        input_px=config.input_px,
    )


def _pixels(store: PatchStore, slide: Path | None) -> AbstractContextManager[ReadPatches]:
    """Where the patches come from: the store, or the slide itself where the store holds coordinates only."""
    if store.has_pixels:
        return nullcontext(store.read)
    if slide is None:
        raise SlideError(
            f"{store.path}: holds coordinates only (--pixels reference); "
            "name the slides with --slides TABLE, a table with the column `path`"
        )
    return patches_of_slide(store, slide)


def _features(read: ReadPatches, count: int, embedder: Embedder, dtype: str) -> NDArray[np.floating]:
    """(N, D) in the type that is stored. Raises SlideError where float16 cannot hold them."""
    features = np.empty((count, embedder.encoder.dim), dtype)
    largest, start = float(np.finfo(dtype).max), 0
    for batch in embedder.embed(read, count):
        if np.isfinite(batch).all() and np.abs(batch).max() > largest:
            raise SlideError(f"features reach {np.abs(batch).max():.3g}, above {dtype}; use --features-dtype float32")
        features[start : start + len(batch)] = batch
        start += len(batch)
    return features


def _require_same(path: Path, info: EmbeddingInfo, dtype: str) -> None:
    found = {**read_info(path).provenance(), "features_dtype": stored_dtype(path)}
    require_same(found, {**info.provenance(), "features_dtype": dtype}, path)


def _info(store: PatchStore, slide_id: str, embedder: Embedder) -> EmbeddingInfo:
    encoder, of = embedder.encoder, store.info
    return EmbeddingInfo(
        slide_id=slide_id,
        store_digest=store.digest,
        encoder=encoder.name,
        weights=encoder.weights,
        weights_sha256=encoder.weights_sha256,
        input_px=embedder.input_px(of.patch_size_px),
        normalisation=encoder.normalisation,
        precision=embedder.precision,
        patch_size_px=of.patch_size_px,
        patch_size_l0=of.patch_size_l0,
        overlap_px=of.overlap_px,
        width_l0=of.width_l0,
        height_l0=of.height_l0,
        mpp_l0=of.mpp_l0,
        mpp=of.mpp,
        slide_fingerprint=of.fingerprint,
    )

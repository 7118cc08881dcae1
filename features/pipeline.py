"""Patch stores to feature files: the loop over slides, what is skipped, and what each file says of itself."""

import functools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.config import FeatureConfig
from features.embed.adaptation import keep_norms
from features.embed.arithmetic import exact_arithmetic
from features.embed.patch_source import patches_of
from features.embed.pipe import Embedder
from features.encoders import Encoder, load_encoder
from features.feature_file import EmbeddingInfo, Embeddings, SlideStatistics, read_info, stored_dtype, write_embeddings
from features.request import Candidates, requested_slides
from features.statistics.adapted_norms import FILE, adapt, read_norms
from features.statistics.cohort import write_cohort_statistics
from features.statistics.colours import PixelSums, TissueColours
from features.statistics.norm_moments import NormMoments
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.provenance import require_same
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow, largest_first, select_part
from tiling.store.patches import PatchStore

if TYPE_CHECKING:
    import pandas as pd

_SLIDES_AT_ONCE = 8  # while some are opened or written, others keep the devices busy; batches take up small ones
_NORM_EVERY = 64  # patches, of which one is shown to the batch norms


def find_stores(patches: Path, slides: "Path | pd.DataFrame | None" = None) -> list[SlideRow]:
    """The slides to embed: all stores of the folder, or those of a slide table. Raises RequestError."""
    if patches.suffix == ".zarr" and patches.is_dir():
        raise RequestError(f"{patches} is one patch store; give its folder, and --slides TABLE to pick from it")
    stores = [store.stem for store in sorted(patches.glob("*.zarr"))]
    missing = "no patch store (<slide_id>.zarr) in this folder; make them with tile-slides"
    return requested_slides(Candidates(patches, stores, "the --out folder of tile-slides", missing), slides)


def extract_features(
    rows: Sequence[SlideRow], config: FeatureConfig, patches: Path, out: Path, listener: Listener = SILENT
) -> Outcomes:
    """Embed the stores `patches/<slide_id>.zarr` into `out`. Raises RequestError.

    rows: all slides of the request; of these `config.part` is done, and batch norms are adapted to all.
    """
    own = select_part(rows, config.part) if config.part else rows
    if config.adapt_bn:
        norms = keep_norms(rows, _encoder(config), config, patches, out)
        listener.say(f"batch norms of {norms.patches} patches of {norms.slides} slide(s)")
        config = replace(config, adapt_bn=False, adapted_norms=str(out / FILE))  # for workers elsewhere too
    embedder = Embedder(_encoder(config), config.embedding)
    encoder = embedder.encoder
    listener.say(
        f"{encoder.name}, weights {encoder.weights} (sha256 {encoder.weights_sha256[:12]}), "
        f"{embedder.device} {embedder.precision}, batch {embedder.batch_size}, {len(own)} slide(s)"
    )
    work: Callable[[SlideRow], Outcome]
    if config.scheduler:
        own = largest_first(own)
        work = functools.partial(_extract_on_worker, run=uuid.uuid4().hex, config=config, patches=patches, out=out)
    else:
        work = functools.partial(_extract_slide, embedder=embedder, config=config, patches=patches, out=out)
    execution = Execution(threads=_SLIDES_AT_ONCE, scheduler=config.scheduler, part=config.part)
    with exact_arithmetic(embedder.lanes):
        outcomes = run_slides(own, work, out, execution, listener)
    write_cohort_statistics(out, encoder)
    return outcomes


def _extract_slide(row: SlideRow, embedder: Embedder, config: FeatureConfig, patches: Path, out: Path) -> Outcome:
    """Write one slide's features, or skip it where the same features are there. Raises SlideError."""
    path = out / f"{row.slide_id}.h5"
    with lock(path):
        store = PatchStore(patches / f"{row.slide_id}.zarr")
        info = _info(store, row.slide_id, embedder)
        if path.exists() and not config.overwrite:
            _require_same(path, info, config.features_dtype)
            return Outcome(row.slide_id, "skipped", "already done", len(store))
        if not config.overwrite:
            _require_one_making(out, info)
        with _unchanged(store):
            features, colours = _embed(store, row.path, embedder, config.features_dtype)
            with patches_of(store, row.path, range(0, len(store), _NORM_EVERY)) as few:
                norms = embedder.norm_moments(few)
        write_embeddings(path, Embeddings(features, store.coords_l0, info), _statistics(colours, norms))
    if len(store) == 0:
        return Outcome(row.slide_id, "empty", "its patch store holds no patch")
    return Outcome(row.slide_id, "done", patches=len(store))


@contextmanager
def _unchanged(store: PatchStore) -> Iterator[None]:
    """Raises SlideError where the store changes meanwhile: new patches would stand beside old coordinates."""
    try:
        yield
    except SlideError:  # of a patch that only the old store had, say
        store.require_current()
        raise
    store.require_current()


def _extract_on_worker(row: SlideRow, run: str, config: FeatureConfig, patches: Path, out: Path) -> Outcome:
    embedder = _embedder_of(run, config)
    with exact_arithmetic(embedder.lanes):
        return _extract_slide(row, embedder, config, patches, out)


@functools.lru_cache(maxsize=1)
def _embedder_of(run: str, config: FeatureConfig) -> Embedder:
    """One network in each worker of a Dask cluster; another run may find other weights in the same files."""
    return Embedder(_encoder(config), config.embedding)


def _encoder(config: FeatureConfig) -> Encoder:
    encoder = load_encoder(config.encoder, config.weights, config.seed)
    return adapt(encoder, read_norms(Path(config.adapted_norms))) if config.adapted_norms else encoder


def _embed(
    store: PatchStore, slide: Path | None, embedder: Embedder, dtype: str
) -> tuple[NDArray[np.floating], PixelSums]:
    """Embeddings (N, D) in the type that is stored, and colours. SlideError where float16 cannot hold them."""
    with patches_of(store, slide) as source:
        colours = TissueColours(source.tissue)
        features = embedder.embed(source, colours.look)
    largest = max(-float(features.min(initial=0)), float(features.max(initial=0)))
    if float(np.finfo(dtype).max) < largest < np.inf:
        raise SlideError(f"features reach {largest:.3g}, above {dtype}; use --features-dtype float32")
    return features.astype(dtype, copy=False), colours.sums


def _statistics(colours: PixelSums, norms: NormMoments) -> SlideStatistics:
    return SlideStatistics(
        tissue_pixels=colours.count,
        pixel_mean=colours.mean,
        pixel_std=colours.std,
        norm_patches=norms.patches,
        norm_layers=norms.layers,
        norm_mean=norms.mean,
        norm_var=norms.variance,
    )


def _require_one_making(out: Path, info: EmbeddingInfo) -> None:
    """Raises SlideError where another slide's file was made differently: no folder holds two kinds of features."""
    with os.scandir(out) as entries:  # to the first that can be read: a listing for each slide would be quadratic
        for path in (Path(entry) for entry in entries if entry.name.endswith(".h5")):
            with suppress(SlideError):  # said when that slide itself is done
                found = read_info(path)
                break
        else:
            return
    require_same(found.making(), info.making(), path)


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
        normalisation=encoder.preprocessing.normalisation,
        precision=embedder.precision,
        resizing=encoder.preprocessing.resizing,
        decoder=_decoder(store),
        engine=embedder.engine,
        patch_size_px=of.patch_size_px,
        patch_size_l0=of.patch_size_l0,
        overlap_px=of.overlap_px,
        width_l0=of.width_l0,
        height_l0=of.height_l0,
        mpp_l0=of.mpp_l0,
        mpp=of.mpp,
        slide_fingerprint=of.fingerprint,
    )


def _decoder(store: PatchStore) -> str:
    """What makes pixels of the store's patches, and its version."""
    decoders = {"jpeg": f"simplejpeg {metadata.version('simplejpeg')}", "zstd": "zstd, lossless"}
    return decoders.get(store.info.config["pixels"], f"the slide's own, by {store.info.backend}")

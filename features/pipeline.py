"""Patch stores to feature files: the loop over slides, each of which all encoders of a request see in one pass."""

import functools
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.config import FeatureConfig
from features.elsewhere import Places, finished_in_objects
from features.embed.adaptation import keep_norms
from features.embed.arithmetic import exact_arithmetic
from features.embed.calibration import keep_int8
from features.embed.patch_source import patches_of
from features.embed.pipe import Embedder, Together
from features.embed.scale import seen_as
from features.encoders.int8 import FILE as INT8_FILE
from features.encoders.int8 import NEAR, Int8Network
from features.feature_file import Embeddings, SlideStatistics, write_embeddings
from features.making import Making, encoder_of, makings
from features.request import Candidates, requested_slides
from features.statistics.adapted_norms import FILE as NORMS_FILE
from features.statistics.cohort import write_cohort_statistics
from features.statistics.colours import PixelSums, TissueColours
from features.statistics.norm_moments import NormMoments
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow, largest_first, select_part
from tiling.objects.folder import ObjectFolder
from tiling.qc.fault import fault_of
from tiling.seen import Seen
from tiling.store.patches import PatchStore

if TYPE_CHECKING:
    import pandas as pd

_SLIDES_AT_ONCE = 8  # while some are opened or written, others keep the devices busy; batches take up small ones
_NORM_EVERY = 64  # patches, of which one is shown to the batch norms


def find_stores(patches: Path | ObjectFolder, slides: "Path | pd.DataFrame | None" = None) -> list[SlideRow]:
    """The slides to embed: all stores of the folder, or those of a slide table. Raises RequestError."""
    if str(patches).endswith(".zarr") and (isinstance(patches, ObjectFolder) or patches.is_dir()):
        raise RequestError(f"{patches} is one patch store; give its folder, and --slides TABLE to pick from it")
    names = patches.names()[0] if isinstance(patches, ObjectFolder) else [path.name for path in patches.glob("*.zarr")]
    stores = [name.removesuffix(".zarr") for name in sorted(names) if name.endswith(".zarr")]
    missing = "no patch store (<slide_id>.zarr) in this folder; make them with tile-slides"
    return requested_slides(Candidates(patches, stores, "the --out folder of tile-slides", missing), slides)


def extract_features(
    rows: Sequence[SlideRow],
    config: FeatureConfig,
    patches: Path | ObjectFolder,
    out: Path | ObjectFolder,
    listener: Listener = SILENT,
) -> Outcomes:
    """Embed the stores `patches/<slide_id>.zarr` into `out`, or a folder in it for each encoder. Raises RequestError.

    rows: all slides of the request; of these `config.part` is done, and batch norms are adapted to all.
    """
    places = Places(patches, out, config.stage)
    places.require_usable(config)
    own = select_part(rows, config.part) if config.part else rows
    if isinstance(patches, Path) and isinstance(out, Path):
        config = _fitted(rows, config, patches, out, listener)
    each = makings(config, places.made_in)
    for making in each:
        embedder, encoder = making.embedder, making.embedder.encoder
        listener.say(
            f"{encoder.name}, weights {encoder.weights} (sha256 {encoder.weights_sha256[:12]}), "
            f"{embedder.device} {embedder.precision}, batch {embedder.batch_size}, slides: {len(own)}"
        )
        if encoder.int8:
            _say_int8(encoder.int8, listener)
        if resized := _resized(own, embedder, places):
            listener.say(resized)
    work: Callable[[SlideRow], Outcome]
    if config.scheduler:
        own = largest_first(own)
        work = functools.partial(_extract_on_worker, run=uuid.uuid4().hex, config=config, places=places)
    else:
        together = Together([m.embedder for m in each])
        work = functools.partial(_extract_slide, each=each, together=together, places=places)
    gpu = config.device.startswith("cuda")
    known = _finished(own, each, places, listener)
    left = [row for row in own if row.slide_id not in known]
    address = str(out) if isinstance(out, ObjectFolder) else ""
    execution = Execution(0, _SLIDES_AT_ONCE, config.scheduler, gpu, config.part, address=address)
    with exact_arithmetic(each[0].embedder.lanes), places.of_run(config.part) as here:
        outcomes = run_slides(left, work, here, execution, listener, tuple(known.values()))
    for making in each:
        try:
            write_cohort_statistics(places.folder_of(making), making.embedder.encoder)
        except SlideError as error:
            listener.warn(f"statistics.json is not made: {error}")
    return outcomes


def _fitted(
    rows: Sequence[SlideRow], config: FeatureConfig, patches: Path, out: Path, listener: Listener
) -> FeatureConfig:
    """With the files of what is fitted to all slides, made where they are not there: for workers elsewhere too."""
    if config.adapt_bn:
        norms = keep_norms(rows, encoder_of(config), config, patches, out)
        listener.say(f"batch norms of {norms.patches} patches (slides: {norms.slides})")
        config = replace(config, adapt_bn=False, adapted_norms=str(out / NORMS_FILE))
    if config.calibrates:
        keep_int8(rows, encoder_of(config), config, patches, out)
        config = replace(config, int8_network=str(out / INT8_FILE))
    return config


def _say_int8(network: Int8Network, listener: Listener) -> None:
    listener.say(network.said)
    if network.cosine_mean < NEAR:
        listener.warn(f"features in int8 are far from those in fp32 (below {NEAR}); --precision bf16 is nearer")


def _resized(rows: Sequence[SlideRow], embedder: Embedder, places: Places) -> str:
    """How the network sees the patches of the first slide that can be opened, if not as they are."""
    for row in rows:
        with suppress(SlideError):
            of = places.head(row.slide_id).info
            side = embedder.input_px(of.patch_size_px)
            return seen_as(of, side) if side != of.patch_size_px else ""
    return ""


def _finished(
    rows: Sequence[SlideRow], each: Sequence[Making], places: Places, listener: Listener
) -> dict[str, Outcome]:
    """Outcomes of slides that a look shows to be finished; no lock is taken, for a file is whole wherever it is."""
    if isinstance(places.out, ObjectFolder):
        return finished_in_objects(rows, each, places)
    found = {}
    looks = [(making, Seen(making.out, making.config.part)) for making in each]
    for row in rows:
        with suppress(SlideError, OSError):
            store = places.head(row.slide_id)
            if all(making.is_known(row.slide_id, making.info(store, row.slide_id), seen) for making, seen in looks):
                found[row.slide_id] = Outcome(row.slide_id, "skipped", "already done", len(store))
    for _, seen in looks:
        if fault := fault_of(seen.write, "seen.json"):
            listener.warn(fault)
    return found


def _extract_slide(row: SlideRow, each: Sequence[Making], together: Together, places: Places) -> Outcome:
    """Where the patches or the features lie elsewhere, by way of a folder here."""
    with places.at_hand(row.slide_id, each) as (here, patches):
        return _extract_here(row, here, together, patches)


def _extract_here(row: SlideRow, each: Sequence[Making], together: Together, patches: Path) -> Outcome:
    """Write one slide's features, of each encoder, or skip it where the same features are there. Raises SlideError."""
    with ExitStack() as locks:
        for making in each:
            making.out.mkdir(parents=True, exist_ok=True)
            locks.enter_context(lock(making.path(row.slide_id)))
        store = PatchStore(patches / f"{row.slide_id}.zarr")
        infos = [making.info(store, row.slide_id) for making in each]
        done = [making.is_done(row.slide_id, info) for making, info in zip(each, infos, strict=True)]
        if all(done):
            return Outcome(row.slide_id, "skipped", "already done", len(store))
        with _unchanged(store):
            found, colours = _embed(store, row.path, together)
            with patches_of(store, row.path, range(0, len(store), _NORM_EVERY)) as few:
                norms = [making.embedder.norm_moments(few) for making in each]
        for i in (i for i, there in enumerate(done) if not there):
            features = _stored(found[i], each[i].config.features_dtype)
            embeddings = Embeddings(features, store.coords_l0, infos[i])
            write_embeddings(each[i].path(row.slide_id), embeddings, _statistics(colours, norms[i]))
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


def _extract_on_worker(row: SlideRow, run: str, config: FeatureConfig, places: Places) -> Outcome:
    each, together = _networks_of(run, config, places.made_in)
    with exact_arithmetic(each[0].embedder.lanes):
        return _extract_slide(row, each, together, places)


@functools.lru_cache(maxsize=1)
def _networks_of(run: str, config: FeatureConfig, out: Path) -> tuple[Sequence[Making], Together]:
    """One of each in each worker of a Dask cluster; another run may find other weights in the same files."""
    each = makings(config, out)
    return each, Together([making.embedder for making in each])


def _embed(store: PatchStore, slide: Path | None, together: Together) -> tuple[list[NDArray[np.float32]], PixelSums]:
    """Embeddings (N, D) of each encoder, and colours."""
    with patches_of(store, slide) as source:
        colours = TissueColours(source.tissue)
        return together.embed(source, colours.look), colours.sums


def _stored(features: NDArray[np.float32], dtype: str) -> NDArray[np.floating]:
    """In the type that is stored. SlideError where float16 cannot hold them."""
    largest = max(-float(features.min(initial=0)), float(features.max(initial=0)))
    if float(np.finfo(dtype).max) < largest < np.inf:
        raise SlideError(f"features reach {largest:.3g}, above {dtype}; use --features-dtype float32")
    return features.astype(dtype, copy=False)


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

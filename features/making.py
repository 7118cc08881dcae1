"""How one encoder's features are made and where they go: what each file says of itself, and whether it is there."""

import functools
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from features.config import FeatureConfig
from features.embed.pipe import Embedder
from features.embed.scale import require_trained_scale
from features.encoders import Encoder, load_encoder
from features.encoders.int8 import read_int8
from features.feature_file import EmbeddingInfo, read_info, read_info_and_dtype
from features.statistics.adapted_norms import adapt, read_norms
from tiling.jobs.errors import SlideError
from tiling.jobs.locks import is_held
from tiling.jobs.provenance import require_same
from tiling.seen import Seen, stamp_of_files
from tiling.store.patches import PatchStore, StoreHead


@dataclass(frozen=True)
class Making:
    """One of the encoders of a request."""

    embedder: Embedder
    config: FeatureConfig  # with this encoder alone
    out: Path  # its folder

    def path(self, slide_id: str) -> Path:
        return self.out / f"{slide_id}.h5"

    def is_known(self, slide_id: str, info: EmbeddingInfo, seen: Seen) -> bool:
        """Whether the file is there, as `is_done` says; where it was seen before, it is not read again."""
        if self.config.overwrite or not (path := self.path(slide_id)).exists() or is_held(path):
            return False
        stamp = stamp_of_files([path])
        wanted = hashlib.sha256(repr((info.provenance(), self.config.features_dtype)).encode()).hexdigest()
        done = seen.found(slide_id, stamp) == wanted or self.is_done(slide_id, info)
        if done:
            seen.note(slide_id, stamp, wanted)
        return done

    def is_done(self, slide_id: str, info: EmbeddingInfo) -> bool:
        """Whether the file is there. Raises SlideError where it, or the folder, was made otherwise."""
        if self.config.overwrite:
            return False
        if (path := self.path(slide_id)).exists():
            self.require_made(read_info_and_dtype(path), info, path)
            return True
        _require_one_making(self.out, info)
        return False

    def require_made(self, there: tuple[EmbeddingInfo, str], info: EmbeddingInfo, path: Path | str) -> None:
        """Raises SlideError where the file of which this was read was made otherwise."""
        found, stored = there
        wanted = {**info.provenance(), "features_dtype": self.config.features_dtype}
        require_same({**found.provenance(), "features_dtype": stored}, wanted, path)

    def info(self, store: PatchStore | StoreHead, slide_id: str) -> EmbeddingInfo:
        """What the slide's file will say. Raises SlideError where the network cannot or should not see its patches."""
        embedder, of = self.embedder, store.info
        encoder = embedder.encoder
        if not self.config.input_px:
            require_trained_scale(encoder, of)
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
            decoder=decoder_of(store),
            engine=embedder.engine,
            calibration=encoder.int8.calibration if encoder.int8 else "",
            patch_size_px=of.patch_size_px,
            patch_size_l0=of.patch_size_l0,
            overlap_px=of.overlap_px,
            width_l0=of.width_l0,
            height_l0=of.height_l0,
            mpp_l0=of.mpp_l0,
            mpp=of.mpp,
            slide_fingerprint=of.fingerprint,
        )


def makings(config: FeatureConfig, out: Path) -> Sequence[Making]:
    """Of each encoder that `config` names. Raises RequestError."""
    singles = [replace(config, encoder=name) for name in config.encoders]
    folders = [out / single.folder for single in singles] if len(singles) > 1 else [out]
    return [
        Making(Embedder(encoder_of(single), single.embedding), single, folder)
        for single, folder in zip(singles, folders, strict=True)
    ]


def encoder_of(config: FeatureConfig) -> Encoder:
    encoder = load_encoder(config.encoder, config.weights, config.seed)
    if config.adapted_norms:
        encoder = adapt(encoder, read_norms(Path(config.adapted_norms)))
    return encoder.in_int8(read_int8(Path(config.int8_network))) if config.int8_network else encoder


def _require_one_making(out: Path, info: EmbeddingInfo) -> None:
    """Raises SlideError where another slide's file was made differently: no folder holds two kinds of features."""
    if not out.is_dir():
        return
    with os.scandir(out) as entries:  # to the first that can be read: a listing for each slide would be quadratic
        for path in (Path(entry) for entry in entries if entry.name.endswith(".h5")):
            with suppress(SlideError):  # said when that slide itself is done
                found = read_info(path)
                break
        else:
            return
    require_same(found.making(), info.making(), path)


def decoder_of(store: PatchStore | StoreHead) -> str:
    """What makes pixels of the store's patches, and its version."""
    decoders = {"jpeg": f"simplejpeg {_version_of('simplejpeg')}", "zstd": "zstd, lossless"}
    return decoders.get(store.info.config["pixels"], f"the slide's own, by {store.info.backend}")


_version_of = functools.cache(metadata.version)  # it parses a file, and is asked for each slide

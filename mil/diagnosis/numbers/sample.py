"""The network that made a cohort's features, loaded again, and what it makes of a sample of the patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from features.config import EmbedSettings
from features.embed.patch_source import evenly_spaced, patches_of
from features.embed.pipe import embed
from features.encoders import Encoder, load_encoder
from features.feature_file import UNKNOWN
from features.statistics.adapted_norms import ADAPTED, FILE, adapt, read_norms
from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import MissingInput
from tiling.jobs.errors import RequestError, SlideError
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore

_CROP_PX = 224  # of a patch that is embedded for a comparison: each variant sees the same pixels
_AT_ONCE = 16


def load_own_encoder(cohort: Cohort, weights: str, folder: Path) -> Encoder:
    """The very network of the features, by the sha256 of its weights: "default", or a file. Raises MissingInput."""
    info = cohort.infos[0]
    if info.encoder == UNKNOWN:
        raise MissingInput("The feature files do not say which encoder made them; make them with extract-features.")
    kind = "random" if info.weights.startswith("random") else weights
    try:
        encoder = load_encoder(info.encoder, kind, _seed(info.weights))
        if info.weights.endswith(ADAPTED):
            encoder = adapt(encoder, read_norms(folder / FILE))
    except (RequestError, OSError) as error:
        raise MissingInput(f"The encoder's weights are not at hand: {error}.") from error
    if encoder.weights_sha256 != info.weights_sha256:
        raise MissingInput(
            f"Give --weights and the file {info.weights!r}: the features come from other weights of {info.encoder} "
            f"(sha256 {info.weights_sha256[:12]}) than those found ({encoder.weights_sha256[:12]})."
        )
    return encoder


def _seed(weights: str) -> int:
    """Of "random (seed 7)"; 0 for others."""
    inside = weights.partition("(seed ")[2].partition(")")[0]
    return int(inside) if inside else 0


@dataclass(frozen=True)
class Sample:
    """n patches of the cohort, evenly spaced in each slide."""

    pixels: Pixels  # (n, P, P, 3) uint8 RGB
    slides: NDArray[np.int64]  # (n,) positions in the cohort, rising
    indices: NDArray[np.int64]  # (n,) rows of the feature file
    left_out: int  # slides without a fitting store

    def crops(self, encoder: Encoder) -> Pixels:
        """The middle of each patch, where the network takes images of any size."""
        side = self.pixels.shape[1]
        if encoder.preprocessing.input_px or side <= _CROP_PX:
            return self.pixels
        start = (side - _CROP_PX) // 2
        return self.pixels[:, start : start + _CROP_PX, start : start + _CROP_PX]

    def slide_means(self, values: NDArray[np.floating], slides: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Of values (n, D) the mean of each of S slides (S, D), and which slides have any."""
        sums, counts = np.zeros((slides, values.shape[1])), np.bincount(self.slides, minlength=slides)
        np.add.at(sums, self.slides, values)
        return sums / np.maximum(counts, 1)[:, None], counts > 0


def sample_patches(cohort: Cohort, folder: Path, wanted: int) -> Sample:
    """About `wanted` patches of all slides, at least one of each whose store is the one embedded. MissingInput."""
    each = max(1, wanted // len(cohort.slide_ids))
    pixels, slides, indices = [], [], []
    for number, info in enumerate(cohort.infos):
        try:
            store = PatchStore(folder / f"{info.slide_id}.zarr")
            if store.digest != info.store_digest or not store.has_pixels:
                continue
            rows = evenly_spaced(len(store), each)
            with patches_of(store, None, rows) as source:
                pixels.append(source.all())
        except SlideError:
            continue
        slides += [number] * len(rows)
        indices += rows
    if not pixels:
        raise MissingInput(
            "Give --patches and the folder whose patch stores were embedded, with their pixels: none there fits."
        )
    if len({part.shape[1] for part in pixels}) > 1:
        raise MissingInput("Tile all slides with one patch size: patches of different sides cannot be compared.")
    left_out = len(cohort.slide_ids) - len(pixels)
    return Sample(np.concatenate(pixels), np.array(slides), np.array(indices), left_out)


def embed_sample(encoder: Encoder, pixels: Pixels, device: str) -> NDArray[np.float32]:
    """(n, D) in fp32, so that variants differ by nothing but themselves."""
    return embed(encoder, pixels, EmbedSettings(device=device, precision="fp32"))


def steps(pixels: Pixels) -> Sequence[torch.Tensor]:
    """(n, 3, P, P) uint8, a few at a time."""
    parts = np.array_split(pixels, max(1, len(pixels) // _AT_ONCE))
    return [torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts]

"""CONTRACT facts of a slide `qc/<slide_id>.json`: what its patch store says, in numbers that fit one row of a table.

One JSON object: `format`, `version` and the fields of `SlideFacts`. It MUST hold nothing that the store does not, so
no path of a slide and no name of a folder. It is written after the picture `qc/<slide_id>.jpg` that it measures: where
it is, the picture is. A file of another version is written again by the next run over its store.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.jobs.atomic import write_json
from tiling.jobs.errors import SlideError
from tiling.jobs.provenance import check_format
from tiling.store.patches import PatchStore, StoreHead

FORMAT, VERSION = "slidemil-qc", 2
FOLDER = "qc"


@dataclass(frozen=True)
class PictureSize:
    """Where the slide is in its picture: from the top left corner, the caption is below."""

    width_px: int
    height_px: int
    pixel_l0: float  # level-0 pixels that a pixel of the picture is wide


@dataclass(frozen=True)
class SlideFacts:
    """Scales are None where the slide has none; shares are of the whole slide unless they say otherwise."""

    slide_id: str
    digest: str  # of the store
    patches: int
    width_l0: int
    height_l0: int
    mpp_l0: float | None  # µm per level-0 pixel
    mpp_source: str
    mpp: float | None  # µm per patch pixel as obtained
    patch_size_px: int
    patch_size_l0: int
    tissue_method: str
    tissue_share: float
    tissue_covered: float | None  # of the tissue: how much lies in patches; None without tissue, and for old stores
    pen_share: float
    inked_share: float  # of what is tissue or pen: how much is pen
    median_sharpness: float | None  # over the patches; None without one
    reader: str
    picture: PictureSize

    @property
    def patch_size_um(self) -> float | None:
        return None if self.mpp is None else self.mpp * self.patch_size_px


def describe(store: PatchStore, tissue: NDArray[np.bool_], pen: NDArray[np.bool_], picture: PictureSize) -> SlideFacts:
    """The facts of a store. tissue, pen: its masks, each (H, W)."""
    info = store.info
    return SlideFacts(
        slide_id=info.slide_id,
        digest=store.digest,
        patches=len(store),
        width_l0=info.width_l0,
        height_l0=info.height_l0,
        mpp_l0=_known(info.mpp_l0),
        mpp_source=info.mpp_source,
        mpp=_known(info.mpp),
        patch_size_px=info.patch_size_px,
        patch_size_l0=info.patch_size_l0,
        tissue_method="user's mask" if info.mask_sha256 else info.config["tissue"],
        tissue_share=float(tissue.mean()),
        tissue_covered=_known(info.tissue_covered),
        pen_share=float(pen.mean()),
        inked_share=float(pen.sum() / max(1, (tissue | pen).sum())),
        median_sharpness=float(np.median(store.sharpness)) if len(store) else None,
        reader=info.backend,
        picture=picture,
    )


def facts_path(out: Path, slide_id: str) -> Path:
    return out / FOLDER / f"{slide_id}.json"


def picture_path(out: Path, slide_id: str) -> Path:
    return out / FOLDER / f"{slide_id}.jpg"


def write_facts(facts: SlideFacts, out: Path) -> None:
    write_json(facts_path(out, facts.slide_id), {"format": FORMAT, "version": VERSION, **asdict(facts)})


def read_facts(path: Path) -> SlideFacts:
    """Raises SlideError where the file is absent, damaged or of another version."""
    try:
        return facts_from(path.read_bytes(), path)
    except OSError as error:
        raise SlideError(f"{path}: no facts there ({error}); run tile-slides again") from error


def facts_from(content: bytes, path: Path) -> SlideFacts:
    """Of what the file at `path` holds. Raises SlideError where that is damaged or of another version."""
    try:
        values = json.loads(content)
        check_format(values, FORMAT, VERSION, path)
        del values["format"], values["version"]
        return SlideFacts(**{**values, "picture": PictureSize(**values["picture"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SlideError(f"{path}: the facts are damaged ({error}); run tile-slides again") from error


def is_current(store: PatchStore | StoreHead, out: Path) -> bool:
    """Whether picture and facts are there and belong to this very store."""
    written, picture = facts_path(out, store.info.slide_id), picture_path(out, store.info.slide_id)
    try:
        made = min(written.stat().st_mtime_ns, picture.stat().st_mtime_ns)
        return made >= (store.path / "zarr.json").stat().st_mtime_ns and read_facts(written).digest == store.digest
    except (OSError, SlideError):
        return False


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value

"""What is known of a slide's features besides the numbers, and how several sources of it are joined."""

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.feature_file import (
    FORMAT,
    MAY_BE_ABSENT,
    STILL_READ,
    UNKNOWN,
    VERSION,
    EmbeddingInfo,
    Embeddings,
    attributes_of,
)
from tiling.jobs.errors import SlideError
from tiling.jobs.provenance import check_format
from tiling.slide_ids import in_one_form

ORIGIN = "slidemil"  # attribute of a foreign file that was converted from ours: a JSON text
SAID_IN_FULL = ("encoder", "patch_size_px", "patch_size_l0", "overlap_px", "width_l0", "height_l0", "mpp_l0")
FLAGS = {
    "encoder": "--encoder",
    "patch_size_px": "--patch-px",
    "patch_size_l0": "--patch-size-l0 (or --patch-um)",
    "overlap_px": "--overlap-px",
    "width_l0": "--width-l0 (or a table with `path`: --slides)",
    "height_l0": "--height-l0 (or a table with `path`: --slides)",
    "mpp_l0": "--mpp-l0 (or a table with `mpp`: --slides)",
    "patch_size_um": "--patch-um",
}


@dataclass(frozen=True)
class Description:
    """None where nobody has said."""

    encoder: str | None = None
    patch_size_px: int | None = None
    patch_size_l0: int | None = None
    overlap_px: int | None = None  # in patch pixels
    width_l0: int | None = None
    height_l0: int | None = None
    mpp_l0: float | None = None  # µm per level-0 pixel; NaN: the slide has no scale
    patch_size_um: float | None = None  # instead of patch_size_l0, which it gives with mpp_l0


@dataclass(frozen=True)
class Found:
    """What one feature file says. coords (N, 2), (x, y) of patch corners, in one of three units or not there."""

    path: Path
    layout: str
    features: NDArray[Any]  # (N, D) floating
    coords_l0: NDArray[np.int64] | None
    coords_um: NDArray[np.float64] | None
    said: Description
    origin: EmbeddingInfo | None = None  # of the file of ours that it was converted from
    coords_scaled_px: NDArray[np.int64] | None = None  # pixels of the slide as it was scaled to the patches' µm/px
    whole_slide: bool = False  # features are one row, of the slide and of no patch; coords say nothing

    @property
    def slide_id(self) -> str:
        return in_one_form(self.path.stem)


def joined(first: Description, second: Description, path: Path) -> Description:
    """What the file (first) and the request (second) say. Raises SlideError where they contradict each other."""
    values: dict[str, Any] = {}
    for entry in fields(Description):
        a, b = getattr(first, entry.name), getattr(second, entry.name)
        if b is not None and isinstance(a, float) and math.isnan(a):
            a = None  # a slide without a scale: whoever knows it may say it
        if a is not None and b is not None and not _equal(a, b):
            raise SlideError(
                f"{path}: {entry.name} is {a} in the file and {b} in the request; "
                f"leave {FLAGS[entry.name]} out, or check that this is the file you mean"
            )
        values[entry.name] = b if a is None else a
    return _with_level_0_size(Description(**values), path)


def require(known: Description, needed: tuple[str, ...], found: Found, target: str) -> None:
    """Raise SlideError naming every flag that is needed and missing, and for what is no patch features at all."""
    if found.whole_slide:
        raise SlideError(
            f"{found.path}: holds one vector of a whole slide, which has no patches to convert; train-mil and "
            "predict-mil read such a folder as it is"
        )
    missing = [name for name in needed if getattr(known, name) is None]
    if missing:
        raise SlideError(
            f"{found.path}: {target} needs what this {found.layout} file does not say: "
            f"{', '.join(missing)}; give {', '.join(dict.fromkeys(FLAGS[name] for name in missing))}"
        )


def embeddings(found: Found, known: Description, digest: str = UNKNOWN) -> Embeddings:
    """Features and level-0 coordinates in our terms; what is not known is marked so. Raises SlideError."""
    return Embeddings(found.features, _coords_l0(found, known), _info(found, known, digest))


def read_in_place(found: Found) -> Embeddings:
    """A foreign file read in place, with what it says and no more."""
    return embeddings(found, _with_level_0_size(found.said, found.path))


def origin_text(info: EmbeddingInfo, dtype: str) -> str:
    """Our attributes as JSON, for the attribute `slidemil` of a foreign file."""
    values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in attributes_of(info).items()}
    return json.dumps({"format": FORMAT, "version": VERSION, "features_dtype": dtype, **values}, sort_keys=True)


def with_origin(found: Found, text: Any) -> Found:
    """`found` with what the attribute `slidemil` says; in the type in which we had it where that loses nothing."""
    if text is None:
        return found
    try:
        values = dict(json.loads(text))
        check_format(values, FORMAT, VERSION, found.path, STILL_READ)
        absent = {
            **dict.fromkeys(MAY_BE_ABSENT, ""),
            **(dict.fromkeys(("resizing", "decoder", "engine"), UNKNOWN) if values["version"] == 1 else {}),
        }
        values = {**absent, **values}
        entries: dict[str, Any] = {f.name: values[f.name] for f in fields(EmbeddingInfo)}
        dtype = np.dtype(values["features_dtype"])
    except (ValueError, TypeError, KeyError) as error:
        raise SlideError(f"{found.path}: its attribute {ORIGIN!r} is damaged ({error}); remove it") from error
    entries |= {key: math.nan for key in ("mpp_l0", "mpp") if entries[key] is None}
    origin = EmbeddingInfo(**{**entries, "slide_id": found.slide_id})
    with np.errstate(over="ignore"):
        narrow = found.features.astype(dtype)
    features = narrow if np.array_equal(narrow, found.features) else found.features
    said = joined(found.said, described(origin), found.path)
    return replace(found, features=features, origin=origin, said=said)


def described(info: EmbeddingInfo) -> Description:
    """The other way: None for what `info` marks as unknown."""
    known_mpp = not math.isnan(info.mpp_l0) or info.width_l0 > 0  # a slide that was seen and has no scale
    return Description(
        encoder=None if info.encoder == UNKNOWN else info.encoder,
        patch_size_px=info.patch_size_px or None,
        patch_size_l0=info.patch_size_l0 or None,
        overlap_px=None if info.overlap_px < 0 else info.overlap_px,
        width_l0=info.width_l0 or None,
        height_l0=info.height_l0 or None,
        mpp_l0=info.mpp_l0 if known_mpp else None,
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


def _with_level_0_size(known: Description, path: Path) -> Description:
    """A patch size in µm gives the one in level-0 pixels as soon as the scale is known."""
    if known.patch_size_um is None or not known.mpp_l0 or math.isnan(known.mpp_l0):
        return known
    size = round(known.patch_size_um / known.mpp_l0)
    if known.patch_size_l0 is not None and known.patch_size_l0 != size:
        raise SlideError(
            f"{path}: its patches are {known.patch_size_um:g} µm wide, at {known.mpp_l0:g} µm per level-0 pixel {size} "
            f"pixels, not {known.patch_size_l0}; check --mpp-l0 and --patch-size-l0"
        )
    return replace(known, patch_size_l0=size)


def _coords_l0(found: Found, known: Description) -> NDArray[np.int64]:
    if found.coords_l0 is not None:
        return found.coords_l0
    if found.coords_scaled_px is not None:
        return _from_scaled(found.coords_scaled_px, found.path, known)
    if found.coords_um is None:
        raise SlideError(f"{found.path}: holds no coordinates; convert it with convert-features --clam-patches DIR")
    if known.mpp_l0 is None or math.isnan(known.mpp_l0):
        raise SlideError(
            f"{found.path}: its coordinates are in µm and it does not say the slide's µm per pixel; "
            "convert it with convert-features and --mpp-l0, or --slides TABLE with the column `mpp`"
        )
    return np.rint(found.coords_um / known.mpp_l0).astype(np.int64)


def _from_scaled(coords: NDArray[np.int64], path: Path, known: Description) -> NDArray[np.int64]:
    """Patches that lie edge to edge: their number in the grid times their side in level-0 pixels."""
    side = known.patch_size_um / known.mpp_l0 if known.patch_size_um and known.mpp_l0 else known.patch_size_l0
    if not known.patch_size_px or not side:
        raise SlideError(
            f"{path}: its coordinates are pixels of a scaled slide and it does not say the scale; convert it with "
            "convert-features, --patch-px (224 by STAMP 1's default), --patch-um (256) and --mpp-l0"
        )
    if (coords % known.patch_size_px).any():
        raise SlideError(
            f"{path}: coordinates that are no multiples of {known.patch_size_px} px, the side of a patch; "
            f"they are multiples of {np.gcd.reduce(coords, axis=None)}; check --patch-px"
        )
    corners: NDArray[np.int64] = np.rint(coords // known.patch_size_px * side).astype(np.int64)
    return corners


def _info(found: Found, known: Description, digest: str) -> EmbeddingInfo:
    old = found.origin
    return EmbeddingInfo(
        slide_id=found.slide_id,
        store_digest=old.store_digest if old else digest,
        encoder=known.encoder or UNKNOWN,
        weights=old.weights if old else UNKNOWN,
        weights_sha256=old.weights_sha256 if old else UNKNOWN,
        input_px=old.input_px if old else 0,
        normalisation=old.normalisation if old else UNKNOWN,
        precision=old.precision if old else UNKNOWN,
        resizing=old.resizing if old else UNKNOWN,
        decoder=old.decoder if old else UNKNOWN,
        engine=old.engine if old else UNKNOWN,
        patch_size_px=known.patch_size_px or 0,
        patch_size_l0=known.patch_size_l0 or 0,
        overlap_px=-1 if known.overlap_px is None else known.overlap_px,
        width_l0=known.width_l0 or 0,
        height_l0=known.height_l0 or 0,
        mpp_l0=math.nan if known.mpp_l0 is None else known.mpp_l0,
        mpp=_patch_mpp(found, known),
        slide_fingerprint=old.slide_fingerprint if old else "",
    )


def _patch_mpp(found: Found, known: Description) -> float:
    if found.origin is not None and not math.isnan(found.origin.mpp):
        return found.origin.mpp
    if not known.patch_size_px:
        return math.nan
    if known.mpp_l0 is not None and known.patch_size_l0:
        return known.mpp_l0 * known.patch_size_l0 / known.patch_size_px
    return math.nan if known.patch_size_um is None else known.patch_size_um / known.patch_size_px

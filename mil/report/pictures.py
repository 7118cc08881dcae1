"""Small pictures of slides for the report: the thumbnail, and the patches that weighed most in the decision.

They are taken from patch stores; a store is used only if it is the very one that was embedded.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mil.pages.words import counted
from mil.run.attention import SlideAttention, attention_path, read_attention
from mil.run.layout import PICTURES, picture_path, pictured_slides
from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import SlideError
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore

_PATCHES, _PATCH_PX, _GAP_PX = 5, 128, 4
_THUMBNAIL_PX = 360
_OUTLINE, _HALO = (255, 196, 0), (0, 0, 0)
_QUALITY = 88


def write_pictures(out: Path, patches: Path, digests: Mapping[str, str], note: Callable[[str], None]) -> None:
    """Write what is missing of `out/pictures`. digests: slide id → digest of the store that was embedded.

    A slide without a fitting store is left without pictures, and `note` is told how many and why. Folders that do not
    exist and folders without any fitting store write nothing.
    """
    wanted = [name for name in digests if attention_path(out, name).exists()]
    missing = sorted(set(wanted) - pictured_slides(out))
    reasons = {}
    for name in missing if patches.is_dir() else []:
        try:
            _write(out, name, patches / f"{name}.zarr", digests[name])
        except SlideError as error:
            reasons[name] = str(error)
    if reasons:
        name, reason = next(iter(reasons.items()))
        note(f"warning: the report has no pictures of {counted(len(reasons), 'slide')}, {name} among them: {reason}")


def _write(out: Path, name: str, path: Path, digest: str) -> None:
    store, slide = PatchStore(path), read_attention(attention_path(out, name))
    if store.digest != digest or not np.array_equal(store.coords_l0, slide.coords):
        raise SlideError(f"{path}: is not the patch store whose features were used; was the slide tiled again?")
    top = top_patches(slide, _PATCHES)
    pictures = {"thumbnails": _thumbnail(store, slide, top), "patches": _strip(store, top)}
    for kind in PICTURES:
        target = picture_path(out, kind, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            pictures[kind].save(temporary, format="JPEG", quality=_QUALITY)


def top_patches(slide: SlideAttention, count: int) -> NDArray[np.int64]:
    """Indices of the patches with the most attention, the highest first; equal ones in their order in the file.

    Where a head weighs all patches alike (mean, or copied labels), those with the highest score of the predicted class.
    """
    scores = slide.attention.astype(np.float64)
    if np.ptp(scores) <= 1e-6 * scores.max():
        own = slide.task.shown_output(slide.probabilities)
        scores = slide.task.patch_scores(slide.patch_logits.astype(np.float64), own)
    return np.argsort(-scores, kind="stable")[:count].astype(np.int64)


def _thumbnail(store: PatchStore, slide: SlideAttention, top: NDArray[np.int64]) -> Image.Image:
    """The slide, `top` outlined."""
    image = Image.fromarray(store.thumbnail)
    before = image.width
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    scale = image.width / before / store.info.thumbnail_downsample
    draw = ImageDraw.Draw(image)
    for x, y in slide.coords[top] * scale:
        side = max(6.0, store.info.patch_size_l0 * scale)
        draw.rectangle((x - 1, y - 1, x + side + 1, y + side + 1), outline=_HALO)
        draw.rectangle((x, y, x + side, y + side), outline=_OUTLINE, width=2)
    return image


def _strip(store: PatchStore, top: NDArray[np.int64]) -> Image.Image:
    """Patches side by side."""
    step = _PATCH_PX + _GAP_PX
    strip = Image.new("RGB", (len(top) * step - _GAP_PX, _PATCH_PX), "white")
    for place, pixels in enumerate(store.read(top)):
        strip.paste(_small(pixels), (place * step, 0))
    return strip


def _small(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels).resize((_PATCH_PX, _PATCH_PX), Image.Resampling.BOX)

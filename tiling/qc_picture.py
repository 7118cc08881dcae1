"""The quality-control picture of a slide and the numbers beside it, both from its finished patch store.

`qc/<slide_id>.jpg` shows what was taken: the slide, the outline of the tissue, pen, the patches that were kept and a
scale bar. `qc/<slide_id>.json` holds the facts that `qc.html` is made of. Neither has more in it than the store.
"""

import functools
import importlib.util
import json
import math
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from tiling.artifact import atomic_file, write_json
from tiling.patches import PatchStore

SIDE_PX = 1200  # longest side of the slide in the picture
_LEAST_PX = 700  # small slides are enlarged to this side
MARGIN_PX = 12
_CAPTION_PX = 112
# No stain of tissue is green or orange, and who confuses red and green tells these apart (Okabe & Ito 2008).
TISSUE, PATCH, PEN = (0, 120, 85), (25, 25, 25), (230, 120, 0)
_INK, _PAPER, _GREY = (30, 30, 30), (255, 255, 255), (110, 110, 110)


Facts: TypeAlias = dict[str, Any]


def qc_folder(out: Path) -> Path:
    return out / "qc"


def write_qc(store: PatchStore, out: Path) -> None:
    """Write picture and facts of a store, unless those that are there belong to this very store.

    The slide's lock must be held: what a killed job left half drawn is removed.
    """
    picture, facts = (qc_folder(out) / f"{store.info.slide_id}.{suffix}" for suffix in ("jpg", "json"))
    if picture.exists() and facts.exists() and read_facts(facts).get("digest") == store.digest:
        return
    for stale in qc_folder(out).glob(f".{store.info.slide_id}.*.tmp-*"):
        stale.unlink()
    described = describe(store)
    with atomic_file(picture) as temporary:
        draw_qc(store, described).save(temporary, "JPEG", quality=85)
    write_json(facts, described)


def read_facts(path: Path) -> Facts:
    """What `write_qc` wrote; empty where the file is damaged."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def describe(store: PatchStore) -> Facts:
    """The facts of a slide. Shares are of the whole slide; scales are None where the slide has none."""
    info = store.info
    return {
        "slide_id": info.slide_id,
        "digest": store.digest,
        "patches": len(store),
        "width_l0": info.width_l0,
        "height_l0": info.height_l0,
        "mpp_l0": _known(info.mpp_l0),
        "mpp_source": info.mpp_source,
        "mpp": _known(info.mpp),
        "patch_size_px": info.patch_size_px,
        "patch_size_l0": info.patch_size_l0,
        "tissue_method": "user's mask" if info.mask_sha256 else info.config["tissue"],
        "tissue_share": float(store.tissue_mask.mean()),
        "pen_share": float(store.pen_mask.mean()),
        "median_sharpness": float(np.median(store.sharpness)) if len(store) else None,
        "reader": info.backend,
    }


def draw_qc(store: PatchStore, facts: Facts) -> Image.Image:
    """The slide at most SIDE_PX wide and high, MARGIN_PX from the picture's corner, with a caption below."""
    thumbnail = Image.fromarray(store.thumbnail)
    longest = max(thumbnail.size)
    scale = min(max(longest, _LEAST_PX), SIDE_PX) / longest  # picture pixels per thumbnail pixel
    size = (max(1, round(thumbnail.width * scale)), max(1, round(thumbnail.height * scale)))
    shown = np.asarray(thumbnail.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)).copy()
    shown[_resized(store.pen_mask, size)] = PEN
    tissue = _resized(store.tissue_mask, size)
    shown[binary_dilation(tissue) & ~tissue] = TISSUE
    slide = Image.fromarray(shown)
    pixel_l0 = store.info.thumbnail_downsample * thumbnail.width / size[0]  # level-0 pixels per picture pixel
    _draw_patches(slide, store, pixel_l0)
    width = max(size[0], 560) + 2 * MARGIN_PX
    picture = Image.new("RGB", (width, size[1] + 2 * MARGIN_PX + _CAPTION_PX), _PAPER)
    picture.paste(slide, (MARGIN_PX, MARGIN_PX))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((MARGIN_PX - 1, MARGIN_PX - 1, MARGIN_PX + size[0], MARGIN_PX + size[1]), outline=(200, 200, 200))
    _draw_caption(draw, store, facts, (MARGIN_PX, size[1] + 2 * MARGIN_PX))
    _draw_scale_bar(draw, store, size[0] * pixel_l0, pixel_l0, (width - MARGIN_PX, picture.height - 27))
    return picture


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _draw_patches(slide: Image.Image, store: PatchStore, pixel_l0: float) -> None:
    """Each kept patch as a square, drawn over the slide; thinner where they are many and small."""
    side = store.info.patch_size_l0 / pixel_l0
    overlay = Image.new("RGBA", slide.size)
    draw = ImageDraw.Draw(overlay)
    alpha = 190 if side >= 12 else 110
    for x, y in (store.coords_l0 / pixel_l0).tolist():
        draw.rectangle((round(x), round(y), round(x + side) - 1, round(y + side) - 1), outline=(*PATCH, alpha))
    slide.paste(overlay, mask=overlay)


def _draw_caption(draw: ImageDraw.ImageDraw, store: PatchStore, facts: Facts, corner: tuple[int, int]) -> None:
    info, (left, top) = store.info, corner
    draw.text((left, top), info.slide_id, _INK, _font(20))
    small = _font(14)
    scale = f"{info.mpp:.4g} µm/px" if facts["mpp"] else "scale unknown"
    patch = f"{info.patch_size_px} px" + (f" = {info.patch_size_px * info.mpp:.0f} µm" if facts["mpp"] else "")
    of_slide = f"slide {facts['mpp_l0']:.4g} µm/px ({info.mpp_source})" if facts["mpp_l0"] else "slide without a scale"
    sharp = "–" if facts["median_sharpness"] is None else f"{facts['median_sharpness']:.0f}"
    draw.text((left, top + 28), f"{len(store):,} patches of {patch} at {scale};  {of_slide}", _INK, small)
    shares = f"tissue {facts['tissue_share']:.1%} ({facts['tissue_method']}),  pen {facts['pen_share']:.1%}"
    draw.text((left, top + 48), f"{shares},  median sharpness {sharp},  reader {info.backend}", _INK, small)
    place = left
    for colour, name in ((TISSUE, "tissue outline"), (PATCH, "patch kept"), (PEN, "pen")):
        draw.rectangle((place, top + 79, place + 12, top + 91), outline=colour, fill=colour if name == "pen" else None)
        draw.text((place + 18, top + 76), name, _GREY, small)
        place += 34 + round(draw.textlength(name, small))


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw, store: PatchStore, width_l0: float, pixel_l0: float, end: tuple[int, int]
) -> None:
    """A bar of a round length, at most a sixth of the slide's width, that ends at `end`."""
    scaled = not math.isnan(store.info.mpp_l0)
    unit = store.info.mpp_l0 if scaled else 1.0  # per level-0 pixel
    length, label = round_length(width_l0 * unit / 6, "µm" if scaled else "px")
    pixel = pixel_l0 * unit
    x, y = end
    draw.line((x - round(length / pixel), y, x, y), _INK, 4)
    font = _font(14)
    draw.text((x - draw.textlength(label, font), y - 22), label, _INK, font)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along; Pillow's own font has no µ."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


def round_length(length: float, unit: str) -> tuple[float, str]:
    """The largest 1, 2 or 5 × 10ⁿ that is not above `length`, and its label."""
    power = 10.0 ** math.floor(math.log10(length))
    value = max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9))
    return (value, f"{value / 1000:g} mm") if unit == "µm" and value >= 1000 else (value, f"{value:g} {unit}")

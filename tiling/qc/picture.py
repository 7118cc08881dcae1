"""The quality-control picture of a slide: what was taken for tissue and pen, and which patches were kept.

Drawn from the finished patch store alone, with Pillow: it runs for every slide in the process that tiled it.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tiling.jobs.atomic import atomic_file
from tiling.jobs.locks import clear_left
from tiling.qc.facts import PictureSize, SlideFacts, describe, facts_path, is_current, picture_path, write_facts
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore, PatchStoreInfo

SIDE_PX = 1200  # longest side of the slide in the picture
_MOST_ENLARGED = 4  # for small slides: more pixels than these do not show more
_QUALITY = 80
_LEAST_WIDTH_PX = 620  # room for the caption under a narrow slide
_MARGIN_PX, _LINE_PX = 14, 24
# H&E is pink to violet: what differs from it for every eye is yellow against blue, and light against dark.
# The three marks differ in form too: a cased line, thin squares, stripes.
TISSUE, PATCH, PEN = (255, 212, 0), (0, 30, 180), (230, 97, 0)
_CASING, _INK, _SOFT, _PAPER = (25, 25, 25), (24, 28, 32), (92, 100, 108), (255, 255, 255)
_SMALLEST_SQUARE_PX = 4  # smaller ones would be nothing but outline: their area is tinted instead
_STRIPE_PX = 8

Mask: TypeAlias = NDArray[np.bool_]


def write_qc(store: PatchStore, out: Path) -> None:
    """Write picture and facts of a store below `out`, unless those that are there belong to this very store.

    The slide's lock must be held: what a killed job left half drawn is removed.
    """
    if is_current(store, out):
        return
    name = store.info.slide_id
    path = picture_path(out, name)
    path.parent.mkdir(exist_ok=True)
    for left in (path, facts_path(out, name)):
        clear_left(left)
    picture, facts = draw_qc(store)
    with atomic_file(path) as temporary:
        picture.save(temporary, "JPEG", quality=_QUALITY, subsampling="4:4:4", optimize=True)
    write_facts(facts, out)


def draw_qc(store: PatchStore) -> tuple[Image.Image, SlideFacts]:
    """The picture, the slide in its top left corner and the caption below, and the facts that it shows."""
    thumbnail, tissue, pen = store.thumbnail, store.tissue_mask, store.pen_mask
    size = _picture_size(store.info, thumbnail)
    facts = describe(store, tissue, pen, size)
    slide = _enlarge(Image.fromarray(thumbnail), size)
    _draw_pen(slide, _resized(pen, size))
    _draw_patches(slide, store, size.pixel_l0)
    _draw_tissue(slide, _resized(tissue, size))
    _draw_scale_bar(slide, facts)
    return _with_caption(slide, facts), facts


def _picture_size(info: PatchStoreInfo, thumbnail: Pixels) -> PictureSize:
    height, width = thumbnail.shape[:2]
    factor = min(SIDE_PX / max(width, height), _MOST_ENLARGED)  # picture pixels per thumbnail pixel
    downsample = info.thumbnail_downsample
    if math.isnan(downsample):  # an old store does not say; its thumbnail ends less than a pixel after the slide
        downsample = max(info.width_l0 / width, info.height_l0 / height)
    return PictureSize(max(1, round(width * factor)), max(1, round(height * factor)), downsample / factor)


def _enlarge(image: Image.Image, size: PictureSize) -> Image.Image:
    smaller = size.width_px < image.width
    return image.resize((size.width_px, size.height_px), Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC)


def _resized(mask: Mask, size: PictureSize) -> Mask:
    """`mask` at the picture's size: where most of a pixel is in it."""
    return np.asarray(_enlarge(_as_image(mask), size)) >= 128


def _draw_pen(slide: Image.Image, pen: Mask) -> None:
    """Stripes over what is pen, and its outline."""
    if not pen.any():
        return
    rows, columns = np.ogrid[: slide.height, : slide.width]
    stripes = (rows + columns) // (_STRIPE_PX // 2) % 2 == 0
    slide.paste(PEN, mask=_as_image(pen & stripes | _inner_edge(pen, 2)))


def _draw_patches(slide: Image.Image, store: PatchStore, pixel_l0: float) -> None:
    """Each kept patch as a square; neighbours share a line, which is fainter where squares are many and small."""
    side = store.info.patch_size_l0 / pixel_l0
    alpha = round(255 * min(0.9, 0.3 + 0.03 * side))
    opacity = Image.new("L", slide.size)
    draw = ImageDraw.Draw(opacity)
    tinted = alpha if side < _SMALLEST_SQUARE_PX else None
    corners = np.hstack([store.coords_l0, store.coords_l0 + store.info.patch_size_l0]) / pixel_l0
    last = (slide.width - 1, slide.height - 1)
    for square in np.rint(corners).astype(int).clip(0, last + last).tolist():
        draw.rectangle(square, outline=alpha, fill=tinted)
    slide.paste(PATCH, mask=opacity)


def _draw_tissue(slide: Image.Image, tissue: Mask) -> None:
    """The outline of the tissue just inside it: yellow between dark lines, so that it shows on glass and on tissue."""
    slide.paste(_CASING, mask=_as_image(_inner_edge(tissue, 4)))
    slide.paste(TISSUE, mask=_as_image(_inner_edge(_eroded(tissue), 2)))


def _inner_edge(mask: Mask, width_px: int) -> Mask:
    """The outermost `width_px` pixels of a mask; the picture's border counts as its end."""
    inside = mask
    for _ in range(width_px):
        inside = _eroded(inside)
    return mask & ~inside


def _eroded(mask: Mask) -> Mask:
    """`mask` without its outermost pixels; several times as fast as scipy's."""
    framed = np.pad(mask, 1)
    return mask & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]


def _as_image(mask: Mask) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _draw_scale_bar(slide: Image.Image, facts: SlideFacts) -> None:
    """A bar of a round length, at most a fifth of the slide's width, on a light plate in the lower left corner."""
    unit = facts.mpp_l0 or 1.0  # µm, or level-0 pixels, per level-0 pixel
    pixel = facts.picture.pixel_l0 * unit
    length, label = round_length(slide.width * pixel / 5, "µm" if facts.mpp_l0 else "px of level 0")
    font, bar = _font(14), round(length / pixel)
    width = max(bar, round(font.getlength(label)))
    left, bottom = 10, slide.height - 10
    plate = (left, bottom - 36, left + width + 16, bottom)
    if plate[2] > slide.width or plate[1] < 0:
        return  # a slide too small for it; the caption says its size
    light = Image.new("L", slide.size)
    ImageDraw.Draw(light).rounded_rectangle(plate, 5, fill=225)
    slide.paste(_PAPER, mask=light)
    draw = ImageDraw.Draw(slide)
    draw.text((left + 8, bottom - 33), label, _INK, font)
    draw.rectangle((left + 8, bottom - 11, left + 8 + bar - 1, bottom - 7), fill=_INK)


def _with_caption(slide: Image.Image, facts: SlideFacts) -> Image.Image:
    width = max(slide.width, _LEAST_WIDTH_PX)
    marks = ("patch", "tissue", "pen")
    lines = [
        *_flow(list(zip(marks, _shown(facts), strict=True)), width),
        *_flow([("", said) for said in _said(facts)], width),
    ]
    height = slide.height + 2 * _MARGIN_PX + 32 + _LINE_PX * len(lines)
    picture = Image.new("RGB", (width, height), _PAPER)
    picture.paste(slide)
    draw = ImageDraw.Draw(picture)
    draw.line((0, slide.height, width, slide.height), (205, 210, 214))
    top = slide.height + _MARGIN_PX
    draw.text((_MARGIN_PX, top), _shortened(facts.slide_id, width - 2 * _MARGIN_PX), _INK, _font(20, bold=True))
    for number, line in enumerate(lines):
        place = float(_MARGIN_PX)
        y = top + 34 + number * _LINE_PX
        for mark, said in line:
            if mark:
                _draw_mark(draw, mark, (round(place), y + 2))
                place += 24
            draw.text((place, y), said, _INK if mark else _SOFT, _font(14))
            place += _font(14).getlength(said) + 24
    return picture


def _shown(facts: SlideFacts) -> tuple[str, str, str]:
    """What the marks stand for, in the order patch, tissue, pen."""
    size = f"{facts.patch_size_px} px"
    size += "" if facts.patch_size_um is None else f" = {facts.patch_size_um:.4g} µm"
    covered = "" if facts.tissue_covered is None else f", {facts.tissue_covered:.1%} of it in patches"
    return (
        f"{facts.patches:,} patches of {size}",
        f"tissue {facts.tissue_share:.1%} ({facts.tissue_method}){covered}",
        f"pen {facts.pen_share:.1%}",
    )


def _said(facts: SlideFacts) -> tuple[str, ...]:
    scale = "scale unknown"
    if facts.mpp is not None and facts.mpp_l0 is not None:
        scale = f"{facts.mpp:.4g} µm/px from {facts.mpp_l0:.4g} µm/px ({facts.mpp_source})"
    sharpness = "–" if facts.median_sharpness is None else f"{facts.median_sharpness:.0f}"
    slide = f"slide {facts.width_l0:,} × {facts.height_l0:,} px"
    return scale, f"median sharpness {sharpness}", slide, f"reader {facts.reader}"


def _flow(items: Sequence[tuple[str, str]], width: int) -> list[list[tuple[str, str]]]:
    """Items (mark, text) in as many lines as they need."""
    lines: list[list[tuple[str, str]]] = []
    room = 0.0
    for mark, said in items:
        needed = _font(14).getlength(said) + (48 if mark else 24)
        if needed > room:
            lines.append([])
            room = float(width - 2 * _MARGIN_PX + 24)
        lines[-1].append((mark, said))
        room -= needed
    return lines


def _draw_mark(draw: ImageDraw.ImageDraw, mark: str, corner: tuple[int, int]) -> None:
    x, y = corner
    if mark == "patch":
        draw.rectangle((x, y, x + 14, y + 14), outline=PATCH)
    elif mark == "tissue":
        draw.rectangle((x, y + 5, x + 15, y + 10), fill=_CASING)
        draw.rectangle((x, y + 7, x + 15, y + 8), fill=TISSUE)
    else:
        for step in range(0, 15):
            for along in range(0, 15):
                if (step + along) // (_STRIPE_PX // 2) % 2 == 0:
                    draw.point((x + step, y + along), PEN)
        draw.rectangle((x, y, x + 14, y + 14), outline=PEN, width=2)


def _shortened(text: str, width: int) -> str:
    """`text`, with its middle left out where it is too long: ids differ at their ends."""
    font, kept = _font(20, bold=True), len(text)
    shown = text
    while font.getlength(shown) > width and kept > 8:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along; Pillow's own font has no µ."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data/fonts/ttf" / name, size)


def round_length(length: float, unit: str) -> tuple[float, str]:
    """The largest 1, 2 or 5 × 10ⁿ that is not above `length`, and its label."""
    power = 10.0 ** math.floor(math.log10(length))
    value = max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9))
    return (value, f"{value / 1000:g} mm") if unit == "µm" and value >= 1000 else (value, f"{value:,.10g} {unit}")

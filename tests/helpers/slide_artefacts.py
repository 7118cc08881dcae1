"""Thumbnails at 8 µm per pixel with drawn artefacts and the truth of every pixel: test material, not real slides.

A scene starts as the optical density of a phantom relative to its glass; stains, pens and dirt are densities that
add up (Beer-Lambert), and `developed` turns them into RGB on glass of any colour with the noise of a scanner.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.draw import polygon2mask

from tiling.phantom.phantom import Phantom, PhantomSpec

MPP = 8.0
PENS = {  # transmitted colour of a full stroke
    "blue": (35, 70, 190),
    "navy": (35, 40, 120),
    "green": (40, 140, 80),
    "red": (205, 35, 45),
    "black": (30, 30, 34),
}


@dataclass(frozen=True)
class Scene:
    pixels: NDArray[np.uint8]  # H, W, 3
    tissue: NDArray[np.bool_]  # H, W: stained tissue that no pen covers
    pen: NDArray[np.bool_]


@functools.cache
def _phantom() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Density (512, 640, 3) relative to glass and outline (512, 640) of one phantom."""
    phantom = Phantom(PhantomSpec(width_px=2560, height_px=2048, seed=11, tumour=False, mpp=2.0))
    pixels = np.asarray(Image.fromarray(phantom.render(0, 0, 2560, 2048)).reduce(4), float)
    outlines = [polygon2mask((512, 640), ring[:, ::-1] / 4 - 0.5) for ring in phantom.tissue]
    density = -np.log((pixels + 1) / (phantom.glass_rgbx.ravel()[:3] + 1.0))
    return density.clip(min=0), np.any(outlines, axis=0)


def developed(
    density: NDArray[np.float64], glass: tuple[float, float, float] = (238, 237, 236), noise: float = 1.5
) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of a density on glass that is a little darker to the right."""
    shading = np.linspace(1.0, 0.985, density.shape[1])[None, :, None]
    light = np.asarray(glass) * shading * np.exp(-density)
    return np.rint(light + np.random.default_rng(0).normal(0, noise, density.shape)).clip(0, 255).astype(np.uint8)


def stroke(shape: tuple[int, int], points: list[tuple[float, float]], width: int) -> NDArray[np.float64]:
    """Opacity (H, W) 0..1 of a felt pen along `points` (x, y) in fractions of the picture: soft edge, streaks."""
    height_px, width_px = shape
    drawn = Image.new("L", (width_px, height_px))
    line = [(x * width_px, y * height_px) for x, y in points]
    ImageDraw.Draw(drawn).line(line, fill=255, width=width, joint="curve")
    streaks = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), (1, 12))
    opacity = ndimage.gaussian_filter(np.asarray(drawn, float) / 255, 1.5)
    return np.asarray(opacity * (0.85 + 0.1 * streaks / streaks.std()).clip(0.4, 1.2))


def with_pen(
    pixels: NDArray[np.uint8], colour: str, points: list[tuple[float, float]], width: int, strength: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture with a stroke of translucent ink on it, and the pixels (H, W) that the stroke covers."""
    opacity = stroke(pixels.shape[:2], points, width)
    ink = -np.log(np.array(PENS[colour]) / 238) * strength
    return np.rint(pixels * np.exp(-opacity[..., None] * ink)).astype(np.uint8), opacity > 0.4


ACROSS = [(0.05, 0.15), (0.3, 0.1), (0.45, 0.5), (0.9, 0.55)]  # over glass and tissue


def plain() -> Scene:
    density, tissue = _phantom()
    return Scene(developed(density), tissue, np.zeros_like(tissue))


def penned(colour: str) -> Scene:
    scene = plain()
    pixels, pen = with_pen(scene.pixels, colour, ACROSS, 40)
    return Scene(pixels, scene.tissue & ~pen, pen)


def pale() -> Scene:
    return replace(plain(), pixels=developed(_phantom()[0] * 0.3))


def glass(colour: tuple[float, float, float]) -> Scene:
    return replace(plain(), pixels=developed(_phantom()[0], colour))


def pale_on_yellow() -> Scene:
    return replace(plain(), pixels=developed(_phantom()[0] * 0.35, (232, 224, 196)))


def blurred() -> Scene:
    return replace(plain(), pixels=developed(ndimage.gaussian_filter(_phantom()[0], (4, 4, 0))))


def ihc() -> Scene:
    """Haematoxylin everywhere, pale, and DAB in some regions (stain vectors of Ruifrok and Johnston 2001)."""
    density, tissue = _phantom()
    amount = density.mean(2, keepdims=True)
    regions = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=tissue.shape), 25)
    brown = (regions > 0.6 * regions.std())[..., None]
    stains = amount * np.array([0.65, 0.50, 0.29]) * 0.8 + amount * brown * np.array([0.27, 0.57, 0.78]) * 2
    return replace(plain(), pixels=developed(stains))


def fatty() -> Scene:
    """Right half of the tissue is fat: cells of 80 µm, pale membranes. The fat counts as tissue."""
    density, tissue = _phantom()
    rng = np.random.default_rng(3)
    seeds = np.ones(tissue.shape, bool)
    seeds[rng.integers(0, 512, 3300), rng.integers(0, 640, 3300)] = False
    _, (rows, columns) = ndimage.distance_transform_edt(seeds, return_indices=True)
    cell = rows * 640 + columns
    membrane = (cell != np.roll(cell, 1, 0)) | (cell != np.roll(cell, 1, 1))
    net = 0.35 * ndimage.gaussian_filter(membrane.astype(float), 0.6)[..., None] * np.array([0.25, 0.9, 0.45])
    fat = tissue & (np.arange(640) > np.median(np.nonzero(tissue)[1]))
    return replace(plain(), pixels=developed(np.where(fat[..., None], net, density)))


def bloody() -> Scene:
    """Pools of bright red blood of 0.5 to 1 mm in and beside the tissue, textured by 25 %: it is tissue."""
    density, tissue = _phantom()
    yy, xx = np.mgrid[:512, :640]
    texture = 1 + 0.25 * np.random.default_rng(6).normal(size=(*tissue.shape, 1))
    blood = np.any([np.hypot(yy - y, xx - x) < r for y, x, r in [(200, 200, 50), (300, 400, 60), (440, 110, 35)]], 0)
    red = -np.log(np.array([195, 68, 80]) / 238) * texture.clip(0.3)
    return replace(plain(), pixels=developed(np.where(blood[..., None], red, density)), tissue=tissue | blood)


def black_borders() -> Scene:
    scene = plain()
    pixels = scene.pixels.copy()
    tissue = scene.tissue.copy()
    for part in (np.s_[:, :45], np.s_[:25], np.s_[-12:]):
        pixels[part] = np.random.default_rng(4).integers(0, 14, pixels[part].shape)
        tissue[part] = False
    return Scene(pixels, tissue, scene.pen)


def padded(colour: tuple[int, int, int], glass_colour: tuple[float, float, float]) -> Scene:
    """Scanned areas on a larger canvas of one constant colour, also between them."""
    pixels = np.pad(developed(_phantom()[0], glass_colour), ((120, 60), (90, 200), (0, 0)))
    scanned = np.pad(np.ones((512, 640), bool), ((120, 60), (90, 200)))
    scanned[:, 90:150] = scanned[120:260, 500:] = False
    pixels[~scanned] = colour
    tissue = np.pad(plain().tissue, ((120, 60), (90, 200))) & scanned
    return Scene(pixels, tissue, np.zeros_like(tissue))


def dusty() -> Scene:
    """Specks of 16 to 80 µm, grey, blue and brown, and a few fibres."""
    density, _ = _phantom()
    rng = np.random.default_rng(5)
    dirt = density.copy()
    yy, xx = np.mgrid[:512, :640]
    for _ in range(150):
        y, x, radius = rng.integers(0, 512), rng.integers(0, 640), rng.uniform(1, 5)
        ink = rng.uniform(0.3, 1.2) * np.array([(1, 1, 1), (1, 0.7, 0.4), (0.4, 0.7, 1)][rng.integers(3)])
        dirt[(yy - y) ** 2 + (xx - x) ** 2 < radius**2] += ink
    for start, angle in zip(rng.uniform(0, 1, (6, 2)), rng.uniform(0, 6, 6), strict=True):
        end = start + 0.15 * np.array([np.cos(angle), np.sin(angle)])
        dirt += 0.8 * stroke((512, 640), [tuple(start), tuple(end)], 2)[..., None]
    return replace(plain(), pixels=developed(dirt))


def coverslip_edge() -> Scene:
    """Two straight lines with coloured fringes; beyond one of them the glass is a shade darker."""
    density, _ = _phantom()
    beyond = np.arange(640)[None, :, None] > 585
    edge = density + 0.08 * beyond
    edge += stroke((512, 640), [(0.915, 0), (0.915, 1)], 3)[..., None] * np.array([0.9, 0.75, 0.6])
    edge += stroke((512, 640), [(0, 0.93), (1, 0.97)], 3)[..., None] * np.array([0.5, 0.6, 0.8])
    return replace(plain(), pixels=developed(edge))


def bubbles() -> Scene:
    density, _ = _phantom()
    yy, xx = np.mgrid[:512, :640]
    air = density.copy()
    for y, x, radius in [(80, 80, 45), (420, 560, 60), (250, 600, 25), (440, 90, 30)]:
        ring = np.exp(-((np.hypot(yy - y, xx - x) - radius) ** 2) / 3)
        air += ring[..., None] * np.array([1.2, 1.15, 1.1])
    return replace(plain(), pixels=developed(air))


def all_tissue() -> Scene:
    """Tissue to every edge: the largest square inside the phantom's outline."""
    density, tissue = _phantom()
    depth = ndimage.distance_transform_cdt(np.pad(tissue, 1), "chessboard")[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    reach = int(depth.max()) - 4
    part = np.s_[row - reach : row + reach, column - reach : column + reach]
    return Scene(developed(density)[part], tissue[part], np.zeros_like(tissue[part]))


def no_tissue() -> Scene:
    nothing = np.zeros((512, 640), bool)
    return Scene(developed(np.zeros((512, 640, 3))), nothing, nothing)


def everything() -> Scene:
    """IHC on yellowish glass with dust, a coverslip edge, a bubble, three pens, black and white surroundings."""
    density = (-np.log((ihc().pixels + 1.0) / 239)).clip(min=0)
    for dirty in (dusty, coverslip_edge, bubbles):
        density = density + np.log((plain().pixels + 1.0) / (dirty().pixels + 1.0)).clip(min=0)
    pixels = developed(density, (234, 230, 212), noise=0.5)
    pen = np.zeros(pixels.shape[:2], bool)
    for colour, points in (
        ("blue", ACROSS),
        ("green", [(0.1, 0.9), (0.5, 0.85), (0.7, 0.95)]),
        ("black", [(0.6, 0.1), (0.95, 0.2)]),
    ):
        pixels, more = with_pen(pixels, colour, points, 34)
        pen |= more
    pixels[:, :30] = np.random.default_rng(4).integers(0, 14, pixels[:, :30].shape)
    pen[:, :30] = False
    tissue = plain().tissue & ~pen
    tissue[:, :30] = False
    sides = ((60, 0), (0, 80))
    return Scene(np.pad(pixels, (*sides, (0, 0)), constant_values=255), np.pad(tissue, sides), np.pad(pen, sides))


SCENES: dict[str, Callable[[], Scene]] = {
    "plain": plain,
    "pale stain": pale,
    "grey glass": lambda: glass((188, 188, 190)),
    "yellowish glass": lambda: glass((232, 224, 196)),
    "pale, yellowish glass": pale_on_yellow,
    "IHC": ihc,
    "fat": fatty,
    "blood": bloody,
    "blur": blurred,
    "black borders": black_borders,
    "white padding": lambda: padded((255, 255, 255), (226, 222, 212)),
    "blue-grey padding": lambda: padded((190, 205, 225), (240, 239, 238)),
    "dust": dusty,
    "coverslip edge": coverslip_edge,
    "bubbles": bubbles,
    **{f"{colour} pen": functools.partial(penned, colour) for colour in PENS},
    "all tissue": all_tissue,
    "no tissue": no_tissue,
    "everything": everything,
}

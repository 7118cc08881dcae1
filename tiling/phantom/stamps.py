"""The stamps that a phantom slide is painted with (nuclei, glands, vessels, fat), and the set of one slide."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiling.phantom.stain import (
    F32,
    F64,
    TEXTURE_PX,
    U8,
    U32,
    Noises,
    Scanner,
    colour_table,
    cytoplasm_texture,
    fibre_texture,
    make_noises,
)


class Stamp(NamedTuple):
    """A picture with soft edges, pasted as `clip(canvas, floor, ceiling)`: two byte operations."""

    floor: U8  # (height, 2 * width)
    ceiling: U8  # (height, 2 * width)


def make_stamp(stain: F32, alpha: F32) -> Stamp:
    """Stamp of stain amounts (height, width, 2) with opacity (height, width) in 0 to 1."""
    opacity = alpha[..., None]
    floor = np.clip(stain, 0, 255) * opacity
    ceiling = 255 - (255 - np.clip(stain, 0, 255)) * opacity
    return Stamp(*(np.ascontiguousarray(a.astype(np.uint8).reshape(len(a), -1)) for a in (floor, ceiling)))


def paste(canvas: U8, stamp: Stamp, x_px: int, y_px: int) -> None:
    """Paste a stamp with its middle at a canvas pixel; parts outside are cut. Changes `canvas` (H, 2W)."""
    height, width2 = stamp.floor.shape
    top, left = y_px - height // 2, 2 * (x_px - width2 // 4)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, canvas.shape[0]), min(left + width2, canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    view = canvas[y0:y1, x0:x1]
    part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    np.maximum(view, stamp.floor[part], out=view)
    np.minimum(view, stamp.ceiling[part], out=view)


@dataclass(frozen=True)
class NucleusKind:
    """Ranges from which the nuclei of one kind are drawn; diameters in µm."""

    diameter_um: tuple[float, float]
    aspect: tuple[float, float]
    """Short over long axis."""
    irregularity: float
    """Amplitude of the outline's waves, as a fraction of the radius."""
    mottle: float
    """Amplitude of the chromatin texture in stain amount."""


# The kinds share one distribution of stain amount: what marks a tumour is size, spacing and shape.
KINDS = {
    "spindle": NucleusKind((7.0, 9.0), (0.26, 0.42), 0.05, 9),
    "normal": NucleusKind((6.4, 8.0), (0.7, 0.98), 0.05, 14),
    "lymphocyte": NucleusKind((5.8, 7.0), (0.86, 1.0), 0.03, 14),
    "tumour": NucleusKind((10.0, 14.0), (0.55, 0.98), 0.1, 16),
}
STAMPS_PER_ANGLE = {"spindle": 5, "normal": 8, "lymphocyte": 5, "tumour": 8}
ANGLES = 16  # directions a stamp library is drawn in, evenly over half a turn


def nucleus_stamps(
    rng: np.random.Generator, kind: NucleusKind, per_angle: int, noises: Noises, mpp: float, blur_um: float
) -> list[Stamp]:
    """ANGLES * per_angle nuclei; those of direction `a * pi / ANGLES` (x towards y) start at `a * per_angle`."""
    n = ANGLES * per_angle
    aspect = rng.uniform(*kind.aspect, n)
    radius_um = rng.uniform(*kind.diameter_um, n) / 2
    long_um = radius_um / np.sqrt(aspect)
    half = int(np.ceil((long_um.max() * (1 + 1.8 * kind.irregularity) + 2 * blur_um) / mpp)) + 1
    angle = (np.repeat(np.arange(ANGLES), per_angle) + rng.uniform(-0.5, 0.5, n)) * np.pi / ANGLES
    amplitude = rng.normal(0, kind.irregularity, (n, 4)) / np.sqrt(np.arange(1, 5))
    depth_um = np.stack(
        [
            _blob_depth_um(half, mpp, (long_um[i], radius_um[i] ** 2 / long_um[i]), angle[i], rng, amplitude[i])
            for i in range(n)
        ]
    )
    alpha = np.clip(0.5 + depth_um / (2 * (0.22 + 1.2 * blur_um)), 0, 1)
    stain = _chromatin(rng, kind, noises, depth_um)
    return [_trimmed(s, a) for s, a in zip(stain, alpha, strict=True)]


def _blob_depth_um(
    half_px: int,
    mpp: float,
    axes_um: tuple[float, float],
    angle: float,
    rng: np.random.Generator,
    amplitude: F64,
) -> F32:
    """Depth in µm below the outline of an ellipse with waves of order 2, 3, ...: (2 half + 1, 2 half + 1).

    axes_um: half of the long and of the short axis.
    """
    long_um, short_um = axes_um
    axis = ((np.arange(2 * half_px + 1) - half_px) * mpp).astype(np.float32)
    plane = (axis[None, :] + 1j * axis[:, None]) * np.complex64(np.exp(-1j * angle))
    stretched: NDArray[np.complex64] = plane.real / np.float32(long_um) + 1j * (plane.imag / np.float32(short_um))
    radius = np.abs(stretched)
    unit = stretched / np.maximum(radius, np.float32(1e-6))
    wave: F32 = np.ones_like(radius)
    power = unit
    turned: NDArray[np.complex128] = amplitude * np.exp(1j * rng.uniform(0, 2 * np.pi, len(amplitude)))
    for a in turned:
        power = power * unit
        wave += (np.complex64(a) * power).real
    depth: F32 = (wave - radius) * np.float32(np.sqrt(long_um * short_um))
    return depth


def _chromatin(rng: np.random.Generator, kind: NucleusKind, noises: Noises, depth_um: F32) -> F32:
    """Stain amounts (n, S, S, 2): darker at the membrane, mottled within."""
    n, size, _ = depth_um.shape
    mottle = np.stack([_crop(rng, noises.speckle, (size, size)) for _ in range(n)])
    level = rng.normal(106, 21, (n, 1, 1)).clip(66, 155)
    stain = np.empty((*depth_um.shape, 2), np.float32)
    stain[..., 0] = rng.uniform(40, 70, (n, 1, 1))
    stain[..., 1] = level + kind.mottle * mottle + 20 * np.exp(-(((depth_um - 0.5) / 0.6) ** 2))
    return stain


def _trimmed(stain: F32, alpha: F32) -> Stamp:
    """Stamp without its empty border, kept symmetric so that its middle stays the middle."""
    rows, cols = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    r = min(rows[0], len(alpha) - 1 - rows[-1])
    c = min(cols[0], len(alpha) - 1 - cols[-1])
    inside = slice(r, len(alpha) - r), slice(c, len(alpha) - c)
    return make_stamp(stain[inside], alpha[inside])


def _random_blob(rng: np.random.Generator, radius_um: float, aspect: float, wave: float, mpp: float) -> F32:
    """Depth in µm below the outline of an irregular ellipse, in any direction."""
    amplitude = np.clip(rng.normal(0, wave, 5), -1.5 * wave, 1.5 * wave) / np.sqrt(np.arange(2, 7))
    half = int(np.ceil(radius_um * (1 + np.abs(amplitude).sum()) / mpp)) + 4
    return _blob_depth_um(half, mpp, (radius_um, radius_um * aspect), rng.uniform(0, np.pi), rng, amplitude)


def _ramp(depth_um: F32, softness_um: float) -> F32:
    """0 outside, 1 inside, over twice the softness."""
    ramp: F32 = np.clip(0.5 + depth_um / np.float32(2 * softness_um), 0, 1)
    return ramp


@dataclass(frozen=True)
class _Ring:
    """A line of nuclei."""

    at_um: float  # below an outline
    spacing_um: float


def gland_stamp(
    rng: np.random.Generator, radius_um: float, nuclei: list[Stamp], noises: Noises, mpp: float, blur_um: float
) -> Stamp:
    """Gland: tall cells with nuclei at their base around a pale lumen."""
    depth = _random_blob(rng, radius_um, rng.uniform(0.62, 1.0), 0.09, mpp)
    soft = 0.4 + 1.5 * blur_um
    lumen = _ramp(depth - np.float32(rng.uniform(16, 22)), soft + 0.5)
    grain = _crop(rng, noises.speckle, depth.shape)
    membrane = np.exp(-(((depth - 0.8) / 0.9) ** 2))
    stain = np.empty((*depth.shape, 2), np.float32)
    stain[..., 0] = (62 + 7 * grain + 20 * membrane) * (1 - lumen)
    stain[..., 1] = (27 + 6 * grain - 0.8 * np.clip(depth - 6, 0, 12)) * (1 - lumen)
    canvas = np.clip(stain, 0, 255).astype(np.uint8).reshape(len(stain), -1)
    for ring in (_Ring(5.2, 6.6), _Ring(11.0, 13.0)):
        _paste_ring(rng, canvas, depth, ring, nuclei, mpp)
    return make_stamp(canvas.reshape(stain.shape).astype(np.float32), _ramp(depth, soft))


def _paste_ring(
    rng: np.random.Generator,
    canvas: U8,
    depth: F32,
    ring: _Ring,
    nuclei: list[Stamp],
    mpp: float,
) -> None:
    """Paste nuclei into `canvas` along a ring, each pointing inwards."""
    rows, cols = np.nonzero(np.abs(depth - ring.at_um) < mpp)
    x, y = cols - depth.shape[1] / 2, rows - depth.shape[0] / 2
    turn = np.arctan2(y, x)
    order = np.argsort(turn)
    x, y, turn = x[order], y[order], turn[order]
    n = int(2 * np.pi * np.hypot(x, y).mean() * mpp / ring.spacing_um)
    at_turn = -np.pi + (np.arange(n) + rng.uniform(-0.15, 0.15, n)) * 2 * np.pi / n
    per_angle = len(nuclei) // ANGLES
    for i in np.searchsorted(turn, at_turn).clip(0, len(turn) - 1):
        angle_bin = round(turn[i] / np.pi * ANGLES) % ANGLES
        stretch = 1 + rng.normal(0, 0.8) / mpp / np.hypot(x[i], y[i])
        x_px, y_px = x[i] * stretch + depth.shape[1] / 2, y[i] * stretch + depth.shape[0] / 2
        paste(canvas, nuclei[angle_bin * per_angle + int(rng.integers(per_angle))], round(x_px), round(y_px))


def _crop(rng: np.random.Generator, noise: F32, shape: tuple[int, ...]) -> F32:
    """A random part of a periodic noise, of any shape."""
    rows, cols = (rng.integers(TEXTURE_PX) + np.arange(n) & TEXTURE_PX - 1 for n in shape)
    part: F32 = noise[np.ix_(rows, cols)]
    return part


def vessel_stamp(rng: np.random.Generator, radius_um: float, noises: Noises, mpp: float, blur_um: float) -> Stamp:
    """Blood vessel: pink wall around an empty lumen, some with red cells."""
    depth = _random_blob(rng, radius_um, rng.uniform(0.5, 0.95), 0.08, mpp)
    soft = 0.4 + 1.5 * blur_um
    cloud = _crop(rng, noises.cloud, depth.shape)
    lumen = _ramp(depth - np.float32(rng.uniform(4, 8)), soft)
    blood = rng.choice([0.0, 120.0]) * np.clip(cloud + 0.6, 0, 1)
    wall = 100 + 14 * np.cos(depth * 2.2 + cloud)
    stain = np.stack([wall * (1 - lumen) + blood * lumen, 16 * (1 - lumen)], -1)
    return make_stamp(stain.astype(np.float32), _ramp(depth, soft))


def fat_stamp(rng: np.random.Generator, radius_um: float, mpp: float, blur_um: float) -> Stamp:
    """Fat cell: an empty hole in a thin wall."""
    depth = _random_blob(rng, radius_um, rng.uniform(0.78, 1.0), 0.07, mpp)
    soft = 0.3 + 1.2 * blur_um
    hole = _ramp(depth - np.float32(1.4), soft)
    stain = np.stack([85 * (1 - hole), 16 * (1 - hole)], -1)
    return make_stamp(stain.astype(np.float32), _ramp(depth, soft))


# ---------------------------------------------------------------- the set of one slide


@dataclass(frozen=True)
class Palette:
    """Everything a slide is painted with; made from its seed."""

    fibre: U32
    cytoplasm: U32
    nuclei: dict[str, list[Stamp]]
    glands: list[Stamp]
    vessels: list[Stamp]
    fat: list[Stamp]
    colours: U32
    """RGBX bytes of each (eosin, haematoxylin) byte pair: (65536,)."""


GLAND_RADIUS_UM = (26.0, 70.0)
FAT_RADIUS_UM = (25.0, 36.0)
N_GLANDS, N_VESSELS, N_FAT = 20, 8, 12


@lru_cache(maxsize=2)
def make_palette(seed: int, scanner: Scanner, mpp: float) -> Palette:
    """Textures, stamps and colours of a slide."""
    rng = np.random.default_rng([seed, 7])
    blur = scanner.blur_um
    noises = make_noises(rng, mpp, blur)
    nuclei = {k: nucleus_stamps(rng, KINDS[k], n, noises, mpp, blur) for k, n in STAMPS_PER_ANGLE.items()}
    gland_radii, vessel_radii = np.linspace(*GLAND_RADIUS_UM, N_GLANDS), np.linspace(14, 40, N_VESSELS)
    return Palette(
        fibre=fibre_texture(rng, noises, mpp, blur),
        cytoplasm=cytoplasm_texture(rng, noises, mpp),
        nuclei=nuclei,
        glands=[gland_stamp(rng, r, nuclei["normal"], noises, mpp, blur) for r in gland_radii],
        vessels=[vessel_stamp(rng, r, noises, mpp, blur) for r in vessel_radii],
        fat=[fat_stamp(rng, r, mpp, blur) for r in rng.uniform(*FAT_RADIUS_UM, N_FAT)],
        colours=colour_table(rng, scanner),
    )

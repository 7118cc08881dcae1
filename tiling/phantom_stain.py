"""What a phantom slide is painted with: hashed noise, stain textures, nucleus and gland stamps, colours.

A picture is kept as two stain amounts per pixel, interleaved bytes (eosin, haematoxylin), so that a canvas of
(height, width) pixels is a uint8 array (height, 2 * width). Its uint16 view indexes a table of colours: stain
strength, scanner colour response and white point then cost one look-up per pixel. Blur is part of the
textures and stamps for the same reason. All lengths are µm until they are divided by `mpp`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Floats = NDArray[np.floating]

EOSIN_OD = np.array([0.045, 0.33, 0.19])  # optical density of (R, G, B) for a stain amount of 100
HAEMATOXYLIN_OD = np.array([0.42, 0.49, 0.25])
SPREAD_MASK = np.uint32(0x00FF00FF)
TEXTURE_PX = 1024  # period of the stain textures; a power of two, so that wrapping is a mask


@dataclass(frozen=True)
class Scanner:
    """Colour response and sharpness of a slide scanner."""

    white: tuple[float, float, float]
    """Colour of empty glass, 0 to 255."""
    gamma: float
    """Exponent on the transmitted light; above 1 is a more contrasty picture."""
    matrix: tuple[tuple[float, float, float], ...]
    """Cross-talk of the colour channels, rows sum to 1."""
    blur_um: float
    """Standard deviation of the point spread."""


SCANNERS = {
    "A": Scanner((243, 242, 244), 1.0, ((1, 0, 0), (0, 1, 0), (0, 0, 1)), 0.15),
    "B": Scanner((238, 237, 231), 0.9, ((0.88, 0.10, 0.02), (0.05, 0.87, 0.08), (0.02, 0.16, 0.82)), 0.4),
}


class Stamp(NamedTuple):
    """A picture with soft edges, pasted as `clip(canvas, floor, ceiling)`: two byte operations."""

    floor: U8  # (height, 2 * width)
    ceiling: U8  # (height, 2 * width)


# ---------------------------------------------------------------- hashed noise


def hash_uniforms(ix: NDArray[np.int64], iy: NDArray[np.int64], key: int) -> F64:
    """Four uniform numbers in [0, 1) for each lattice point: (4, *ix.shape)."""
    z = ix.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + iy.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    z += np.uint64(key * 0xD6E8FEB86659FD93 % 2**64)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.stack([(z >> np.uint64(s)) & np.uint64(0xFFFF) for s in (0, 16, 32, 48)]) / 65536.0


def spline_basis(position: Floats) -> tuple[int, F32]:
    """First node and matrix (n, nodes) of a uniform cubic B-spline at ascending lattice positions (n,)."""
    node = np.floor(position).astype(np.int64)
    t = position - node
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    first = int(node[0]) - 1
    basis = np.zeros((len(position), int(node[-1]) + 3 - first), np.float32)
    rows = np.arange(len(position))
    for k in range(4):
        basis[rows, node - 1 - first + k] = weights[k]
    return first, basis


def interpolate(y_basis: F32, nodes: F32, x_basis: F32) -> F32:
    """Values (H, W) of a spline with nodes (rows, columns), by bases (H, rows) and (W, columns).

    Not `@`: these products are too thin for BLAS, whose threads cost several times the work on a busy machine.
    """
    columns = np.einsum("hk,kw->hw", nodes, np.ascontiguousarray(x_basis.T))
    values: F32 = np.einsum("hk,kw->hw", y_basis, columns)
    return values


@dataclass(frozen=True)
class NoiseField:
    """Smooth noise of mean 0 and standard deviation 1 over the plane, a function of key and position."""

    key: int
    step_um: float
    """Distance of the random nodes; blobs are about twice as wide."""

    def grid(self, x_um: Floats, y_um: Floats) -> F32:
        """Values (H, W) at the crossings of ascending x (W,) and y (H,)."""
        x_first, x_basis = spline_basis(x_um / self.step_um)
        y_first, y_basis = spline_basis(y_um / self.step_um)
        ix = np.arange(x_first, x_first + x_basis.shape[1])
        iy = np.arange(y_first, y_first + y_basis.shape[1])
        nodes = hash_uniforms(*np.meshgrid(ix, iy), key=self.key)[0]
        nodes = ((nodes - 0.5) / 0.139).astype(np.float32)  # 0.139: standard deviation of the spline
        return interpolate(y_basis, nodes, x_basis)


# ---------------------------------------------------------------- textures


def _periodic_noise(rng: np.random.Generator, along_px: float, across_px: float) -> F32:
    """Periodic Gaussian noise (TEXTURE_PX, TEXTURE_PX) of unit variance, smooth over the two lengths."""
    k = np.fft.fftfreq(TEXTURE_PX).astype(np.float32)
    kx = k[: TEXTURE_PX // 2 + 1]
    gain = np.exp(-2 * np.pi**2 * ((kx[None, :] * along_px) ** 2 + (k[:, None] * across_px) ** 2))
    gain[0, 0] = 0
    white = rng.standard_normal((TEXTURE_PX, TEXTURE_PX), dtype=np.float32)
    noise: F32 = np.fft.irfft2(np.fft.rfft2(white) * gain, s=white.shape).astype(np.float32)
    scaled: F32 = noise / noise.std()
    return scaled


def spread(pairs: U16) -> U32:
    """(eosin, haematoxylin) bytes moved 16 bits apart, so that both are scaled by one multiplication."""
    wide = pairs.astype(np.uint32)
    apart: U32 = (wide | wide << np.uint32(8)) & SPREAD_MASK
    return apart


def join(spread_pairs: U32) -> U16:
    """The inverse of `spread`."""
    return (spread_pairs | spread_pairs >> np.uint32(8)).astype(np.uint16)


def _pack(eosin: Floats, haematoxylin: Floats) -> U32:
    """Flat texture of TEXTURE_PX ** 2 spread stain pairs."""
    e, h = (np.clip(a, 0, 255).astype(np.uint32) for a in (eosin, haematoxylin))
    return (e | h << np.uint32(16)).ravel()


@dataclass(frozen=True)
class Noises:
    """Periodic noises (TEXTURE_PX, TEXTURE_PX) that the textures and stamps of a slide share."""

    speckle: F32
    """As fine as the scanner resolves."""
    cloud: F32
    """Patches of 3 µm."""


def make_noises(rng: np.random.Generator, mpp: float, blur_um: float) -> Noises:
    """Noises for one scanner and resolution."""
    fine_px = float(np.hypot(0.42, blur_um)) / mpp
    return Noises(_periodic_noise(rng, fine_px, fine_px), _periodic_noise(rng, 3 / mpp, 3 / mpp))


def fibre_texture(rng: np.random.Generator, noises: Noises, mpp: float, blur_um: float) -> U32:
    """Wavy collagen along x with pale slits between the bundles."""
    fine = _periodic_noise(rng, 14 / mpp, float(np.hypot(0.35, blur_um)) / mpp)
    bundle = _periodic_noise(rng, 22 / mpp, 1.8 / mpp)
    wave_px = 3.2 / mpp * _periodic_noise(rng, 14 / mpp, 14 / mpp)
    fine, bundle = _shifted_rows(fine, wave_px), _shifted_rows(bundle, wave_px)
    eosin = 92 + 15 * bundle + 9 * fine + 4 * noises.speckle
    eosin *= np.clip(1.2 + 0.8 * (bundle + 0.45 * fine + 1.15), 0.1, 1)  # slits
    haematoxylin = 11 + 3 * bundle + 3 * noises.speckle
    return _pack(eosin, haematoxylin * np.clip(eosin / 50, 0, 1))


def _shifted_rows(noise: F32, down_px: F32) -> F32:
    """A periodic noise with each pixel taken from `down_px` rows below, between rows by proportion."""
    source = np.arange(TEXTURE_PX, dtype=np.float32)[:, None] + down_px
    row = np.floor(source).astype(np.int64)
    part = source - row
    upper = np.take_along_axis(noise, row & (TEXTURE_PX - 1), axis=0)
    lower = np.take_along_axis(noise, (row + 1) & (TEXTURE_PX - 1), axis=0)
    shifted: F32 = upper + (lower - upper) * part
    return shifted


def cytoplasm_texture(rng: np.random.Generator, noises: Noises, mpp: float) -> U32:
    """Granular cytoplasm of closely packed cells, with paler seams."""
    seam = np.clip(1 - np.abs(_periodic_noise(rng, 2.6 / mpp, 2.6 / mpp)) / 0.22, 0, 1)
    eosin = 68 + 9 * noises.cloud + 6 * noises.speckle - 26 * seam
    return _pack(eosin, 23 + 5 * noises.cloud + 4 * noises.speckle - 11 * seam)


# ---------------------------------------------------------------- stamps


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
            _blob_depth_um(half, mpp, long_um[i], radius_um[i] ** 2 / long_um[i], angle[i], rng, amplitude[i])
            for i in range(n)
        ]
    )
    alpha = np.clip(0.5 + depth_um / (2 * (0.22 + 1.2 * blur_um)), 0, 1)
    stain = _chromatin(rng, kind, noises, depth_um)
    return [_trimmed(s, a) for s, a in zip(stain, alpha, strict=True)]


def _blob_depth_um(
    half_px: int,
    mpp: float,
    long_um: float,
    short_um: float,
    angle: float,
    rng: np.random.Generator,
    amplitude: F64,
) -> F32:
    """Depth in µm below the outline of an ellipse with waves of order 2, 3, ...: (2 half + 1, 2 half + 1)."""
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
    return _blob_depth_um(half, mpp, radius_um, radius_um * aspect, rng.uniform(0, np.pi), rng, amplitude)


def _ramp(depth_um: F32, softness_um: float) -> F32:
    """0 outside, 1 inside, over twice the softness."""
    ramp: F32 = np.clip(0.5 + depth_um / np.float32(2 * softness_um), 0, 1)
    return ramp


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
    for at_um, spacing_um in ((5.2, 6.6), (11.0, 13.0)):
        _paste_ring(rng, canvas, depth, at_um, spacing_um, nuclei, mpp)
    return make_stamp(canvas.reshape(stain.shape).astype(np.float32), _ramp(depth, soft))


def _paste_ring(
    rng: np.random.Generator,
    canvas: U8,
    depth: F32,
    at_um: float,
    spacing_um: float,
    nuclei: list[Stamp],
    mpp: float,
) -> None:
    """Paste nuclei into `canvas` along the line `at_um` below an outline, each pointing inwards."""
    rows, cols = np.nonzero(np.abs(depth - at_um) < mpp)
    x, y = cols - depth.shape[1] / 2, rows - depth.shape[0] / 2
    turn = np.arctan2(y, x)
    order = np.argsort(turn)
    x, y, turn = x[order], y[order], turn[order]
    n = int(2 * np.pi * np.hypot(x, y).mean() * mpp / spacing_um)
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


def colour_table(rng: np.random.Generator, scanner: Scanner) -> U32:
    """Colour of each stain pair, for this slide's staining and this scanner: (65536,) of RGBX bytes."""
    eosin_od = EOSIN_OD * rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
    haematoxylin_od = HAEMATOXYLIN_OD * rng.uniform(0.85, 1.15) * rng.uniform(0.93, 1.07, 3)
    pair = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2) / 100.0  # eosin, haematoxylin
    light = 10 ** -(pair[:, :1] * eosin_od + pair[:, 1:] * haematoxylin_od)
    seen = (light @ np.array(scanner.matrix).T) ** scanner.gamma * np.array(scanner.white)
    rgbx = np.full((65536, 4), 255, np.uint8)
    rgbx[:, :3] = np.clip(np.rint(seen), 0, 255)
    return rgbx.view(np.uint32).ravel()

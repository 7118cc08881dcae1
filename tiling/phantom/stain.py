"""What a phantom slide is painted with: hashed noise, stain textures, scanners, colours.

A picture is kept as two stain amounts per pixel, interleaved bytes (eosin, haematoxylin), so that a canvas of
(height, width) pixels is a uint8 array (height, 2 * width). Its uint16 view indexes a table of colours: stain
strength, scanner colour response and white point then cost one look-up per pixel. Blur is part of the
textures and stamps for the same reason. All lengths are µm until they are divided by `mpp`.
"""

from dataclasses import dataclass

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

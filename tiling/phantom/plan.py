"""What a phantom slide is of: its spec, the outlines of its tissue and the polygons of its lesions."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from tiling.phantom.stain import F32, F64, SCANNERS

COARSE_PX = 64  # pixel of the map of distances to the tissue's edge
SITE_MARGIN_UM = 40.0
MIN_LESION_AREA_UM2 = 250.0**2  # a lesion is split in several only if each keeps this


@dataclass(frozen=True)
class PhantomSpec:
    """What slide to make. Equal specs give equal bytes."""

    width_px: int
    """Width of level 0; the file is padded with glass to a multiple of 16."""
    height_px: int
    """Height of level 0, likewise."""
    seed: int
    """Decides everything that the other fields do not."""
    tumour: bool
    """Whether the slide has lesions."""
    scanner: Literal["A", "B"] = "A"
    """Colour response and sharpness."""
    mpp: float = 0.25
    """µm per pixel of level 0."""
    lesion_fraction: float = 0.03
    """Lesion area over tissue area of a slide with a tumour; above 0, at most 0.05."""
    tile_px: int = 256
    """Side of the tiles in the file, a multiple of 16."""
    jpeg_quality: int = 85
    """JPEG quality, 1 to 100."""
    core_um: float = 0.0
    """Width of the tissue where it is cores of a needle biopsy; 0: pieces as of a resection."""

    def __post_init__(self) -> None:
        if min(self.width_px, self.height_px) < 1024:
            raise ValueError(f"a phantom needs at least 1024 px a side, got {self.width_px} x {self.height_px}")
        if not 0 < self.lesion_fraction <= 0.05:
            raise ValueError(f"lesion_fraction must be above 0 and at most 0.05, got {self.lesion_fraction}")
        if self.scanner not in SCANNERS:
            raise ValueError(f"scanner must be one of {sorted(SCANNERS)}, got {self.scanner!r}")
        if self.tile_px < 16 or self.tile_px % 16:
            raise ValueError(f"tile_px must be a multiple of 16, got {self.tile_px}")
        if self.core_um and not 300 <= self.core_um <= 2000:
            raise ValueError(f"core_um must be 0 or from 300 to 2000, got {self.core_um}")
        if not 0.1 <= self.mpp <= 2 or not 1 <= self.jpeg_quality <= 100 or self.seed < 0:
            raise ValueError(f"needs 0.1 <= mpp <= 2, 1 <= jpeg_quality <= 100 and seed >= 0, got {self}")


@dataclass(frozen=True)
class Site:
    """Where a lesion is, or would be with a tumour."""

    ring_l0: F64  # V, 2
    middle_um: F64  # 2
    radius_um: float

    def near(self, x_um: F64, y_um: F64, reach_um: float) -> NDArray[np.bool_]:
        """Whether points lie within `reach_um` of the circle around the site."""
        near: NDArray[np.bool_] = (
            np.hypot(x_um - self.middle_um[0], y_um - self.middle_um[1]) < self.radius_um + reach_um
        )
        return near


def polygon_area(ring: F64) -> float:
    """Area of an open ring (V, 2)."""
    x, y = ring.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def points_in_polygon(points: F64, ring: F64) -> NDArray[np.bool_]:
    """Whether points (N, 2) lie inside an open ring (V, 2): (N,)."""
    x, y = points[:, :1], points[:, 1:]  # N, 1
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T  # V
    crosses = (y0 > y) != (y1 > y)  # N, V
    with np.errstate(divide="ignore", invalid="ignore"):
        right = x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    odd: NDArray[np.bool_] = np.logical_and(crosses, right).sum(1) % 2 == 1
    return odd


def _star(rng: np.random.Generator, n_vertices: int, coarse: float, fine: float) -> F64:
    """Irregular closed outline around 0 (n_vertices, 2), which reaches at most 1 from it."""
    turn = np.arange(n_vertices) * 2 * np.pi / n_vertices
    radius = np.ones(n_vertices)
    for k in range(2, min(160, n_vertices // 3)):
        amplitude = coarse / (k - 1) if k < 7 else fine / k**1.5
        radius += rng.normal(0, amplitude) * np.cos(k * turn + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.45, None)
    outline: F64 = np.stack([np.cos(turn), np.sin(turn)], -1) * (radius / radius.max())[:, None]
    return outline


def plan_tissue(rng: np.random.Generator, spec: PhantomSpec) -> list[F64]:
    """Outlines of the pieces of tissue, each an open ring (V, 2) in level-0 pixels."""
    return _plan_cores(rng, spec) if spec.core_um else _plan_pieces(rng, spec)


def _plan_cores(rng: np.random.Generator, spec: PhantomSpec) -> list[F64]:
    """Cores one below the other, as long as the slide allows, each a little bent and tilted, with uneven sides."""
    width_um, height_um = spec.width_px * spec.mpp, spec.height_px * spec.mpp
    count = max(1, int(height_um // (3 * spec.core_um)))
    cores = []
    for number in range(count):
        along = np.linspace(0, 1, 240)
        length_um = width_um * rng.uniform(0.75, 0.92)
        bend_um = rng.normal(0, 0.12) * spec.core_um * np.sin(2 * np.pi * along * rng.uniform(0.5, 1.5))
        tilt_um = rng.uniform(-1, 1) * spec.core_um * (along - 0.5)
        sides_um = spec.core_um / 2 * (1 + 0.06 * ndimage.gaussian_filter1d(rng.normal(0, 1, (2, 240)), 4, axis=1) * 4)
        x_um = (width_um - length_um) * rng.uniform(0.2, 0.8) + along * length_um
        y_um = height_um * (number + 0.5) / count + rng.uniform(-0.2, 0.2) * spec.core_um + bend_um + tilt_um
        edges = [np.stack([x_um, y_um - sides_um[0]], 1), np.stack([x_um, y_um + sides_um[1]], 1)[::-1]]
        cores.append(np.concatenate(edges) / spec.mpp)
    return cores


def _plan_pieces(rng: np.random.Generator, spec: PhantomSpec) -> list[F64]:
    """One piece of tissue per slot; slots of roughly equal sides fill the slide."""
    size = np.array([spec.width_px, spec.height_px], float)
    side_px = min(size.min(), 9000 / spec.mpp) / rng.choice([1.0, 1.0, 1.35])
    slots = np.maximum(1, np.rint(size / side_px)).astype(int)
    slot_px = size / slots
    pieces = []
    for row in range(slots[1]):
        for col in range(slots[0]):
            radius = slot_px / 2 * rng.uniform(0.8, 0.95, 2)
            n_vertices = int(np.clip(2 * np.pi * radius.mean() * spec.mpp / 9, 96, 2400))
            room = slot_px / 2 - radius
            middle = (np.array([col, row]) + 0.5) * slot_px + room * rng.uniform(-0.8, 0.8, 2)
            pieces.append(middle + radius * _star(rng, n_vertices, 0.12, 0.3))
    return pieces


def coarse_depth_um(tissue: list[F64], spec: PhantomSpec) -> F32:
    """Distance from the tissue's edge, negative on glass, of COARSE_PX squares, with a border of one."""
    shape = [-(-n // COARSE_PX) + 2 for n in (spec.width_px, spec.height_px)]
    drawn = Image.new("1", (shape[0], shape[1]))
    for ring in tissue:
        ImageDraw.Draw(drawn).polygon([tuple(p) for p in (ring / COARSE_PX + 0.5).tolist()], fill=1)
    inside = np.asarray(drawn)
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    scaled: F32 = (depth * COARSE_PX * spec.mpp).astype(np.float32)
    return scaled


def plan_sites(rng: np.random.Generator, spec: PhantomSpec, tissue_px2: float, depth_um: F32) -> list[Site]:
    """One to three compact blobs well inside the tissue, together `lesion_fraction` of its area."""
    area_um2 = tissue_px2 * spec.mpp**2 * spec.lesion_fraction
    n_sites = int(np.clip(area_um2 // MIN_LESION_AREA_UM2, 1, rng.integers(1, 4)))
    share = rng.dirichlet(np.full(n_sites, 8.0))
    sites: list[Site] = []
    for area in area_um2 * share:
        shape = _star(rng, 96, 0.11, 0.15)
        ring_um = shape * np.sqrt(area / polygon_area(shape))
        sites.append(_place(rng, spec, ring_um, sites, depth_um))
    return sites


def _place(rng: np.random.Generator, spec: PhantomSpec, ring_um: F64, others: list[Site], depth_um: F32) -> Site:
    """Put a blob where the tissue is wide enough, apart from the others; shrink it where nothing is."""
    radius_um = float(np.hypot(*ring_um.T).max())
    cell_um = COARSE_PX * spec.mpp
    rows, cols = np.indices(depth_um.shape)
    x_um, y_um = (cols - 0.5) * cell_um, (rows - 0.5) * cell_um
    room_um = depth_um.astype(float) - 1.5 * cell_um - SITE_MARGIN_UM
    for other in others:
        apart = np.hypot(x_um - other.middle_um[0], y_um - other.middle_um[1]) - other.radius_um - SITE_MARGIN_UM
        room_um = np.minimum(room_um, apart)
    wide = np.flatnonzero(room_um >= radius_um)
    spot = int(wide[rng.integers(len(wide))]) if len(wide) else int(room_um.argmax())
    scale = min(1.0, room_um.flat[spot] / radius_um)
    if scale <= 0:
        raise ValueError(f"no room for a lesion in the tissue of {spec}; use a larger slide")
    middle_um = np.array([x_um.flat[spot], y_um.flat[spot]])
    return Site((middle_um + scale * ring_um) / spec.mpp, middle_um, scale * radius_um)

"""Synthetic slides that look like H&E-stained tissue, for the demo, the tests and the benchmarks.

A phantom is a function from (seed, position) to colour. It is evaluated in squares of BLOCK_PX on a fixed
grid, so that a region is the same however it is cut. A lesion is a polygon: the tumour nuclei are those whose
middle lies inside it. The same sites are planned whether or not the slide has a tumour; without one they are
filled with normal nuclei at about the same darkness, so neither colour nor layout tells the label.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from tiling.phantom import stain as stain
from tiling.phantom import stamps as stamp
from tiling.phantom.plan import (
    COARSE_PX,
    PhantomSpec,
    coarse_depth_um,
    plan_sites,
    plan_tissue,
    points_in_polygon,
    polygon_area,
)
from tiling.phantom.stain import F32, F64, U8, U32, Floats, NoiseField
from tiling.phantom.writer import write_pyramid

__all__ = ["Phantom", "PhantomSpec", "write_phantom"]

BLOCK_PX = 512
POSITIVE_PX = 2**18  # multiple of the texture period that makes fibre coordinates positive
EDGE_PX = 8  # pixel of the outline drawn in the blocks at the edge
EDGE_REACH_UM = 10.0  # how far the frayed edge reaches from the outline
CELL_UM = 8.0  # one nucleus at most per square of this side
TUMOUR_CELL_UM = 16.5
NUCLEUS_REACH_UM = 13.0  # from the middle of a nucleus to its farthest pixel
GLAND_CELL_UM = 150.0
FAT_CELL_UM = 51.0


@dataclass(frozen=True)
class _Zones:
    """What grows where, at the crossings of a grid: each (rows, cols), 0 to 1."""

    cellular: F32
    lymphoid: F32


class Phantom:
    """A planned slide: outlines and lesions are known at once, pixels are made when asked for."""

    spec: PhantomSpec
    lesions: list[F64]
    """Open rings (V, 2) of (x, y) in level-0 pixels; none without a tumour."""
    tissue: list[F64]
    """Outlines of the tissue pieces, likewise."""

    def __init__(self, spec: PhantomSpec) -> None:
        self.spec = spec
        rng = np.random.default_rng([spec.seed, 1])
        self.tissue = plan_tissue(rng, spec)
        self._depth_um = coarse_depth_um(self.tissue, spec)
        self._sites = plan_sites(rng, spec, sum(map(polygon_area, self.tissue)), self._depth_um)
        self.lesions = [site.ring_l0 for site in self._sites] if spec.tumour else []
        self._fibre_angle = float(rng.uniform(0, np.pi))
        key = spec.seed * 16
        self._bend_along, self._bend_across = NoiseField(key, 150), NoiseField(key + 1, 120)
        self._cellularity, self._cellularity_fine = NoiseField(key + 2, 140), NoiseField(key + 3, 45)
        self._lymphoid, self._fat = NoiseField(key + 4, 110), NoiseField(key + 5, 170)
        self._thickness = NoiseField(key + 6, 130)
        self._key = key + 7

    @property
    def _palette(self) -> stamp.Palette:
        return stamp.make_palette(self.spec.seed, stain.SCANNERS[self.spec.scanner], self.spec.mpp)

    def render(self, x_l0: int, y_l0: int, width_px: int, height_px: int) -> U8:
        """Level-0 region (height_px, width_px, 3), RGB; glass outside the slide."""
        return np.ascontiguousarray(self.render_rgbx(x_l0, y_l0, width_px, height_px)[..., :3])

    def render_rgbx(self, x_l0: int, y_l0: int, width_px: int, height_px: int) -> U8:
        """Level-0 region (height_px, width_px, 4); the fourth byte is 255."""
        bx, by = x_l0 // BLOCK_PX, y_l0 // BLOCK_PX
        if x_l0 % BLOCK_PX == y_l0 % BLOCK_PX == 0 and width_px == height_px == BLOCK_PX:
            return self._block(bx, by).view(np.uint8).reshape(BLOCK_PX, BLOCK_PX, 4)
        out = np.empty((height_px, width_px), np.uint32)
        for row in range(by, -(-(y_l0 + height_px) // BLOCK_PX)):
            for col in range(bx, -(-(x_l0 + width_px) // BLOCK_PX)):
                x, y = col * BLOCK_PX, row * BLOCK_PX
                x0, x1 = max(x, x_l0), min(x + BLOCK_PX, x_l0 + width_px)
                y0, y1 = max(y, y_l0), min(y + BLOCK_PX, y_l0 + height_px)
                block = self._block(col, row)
                out[y0 - y_l0 : y1 - y_l0, x0 - x_l0 : x1 - x_l0] = block[y0 - y : y1 - y, x0 - x : x1 - x]
        return out.view(np.uint8).reshape(height_px, width_px, 4)

    @property
    def glass_rgbx(self) -> U8:
        """Colour of empty glass, (4,)."""
        return self._palette.colours[:1].view(np.uint8)

    def is_glass(self, x_l0: int, y_l0: int, width_px: int, height_px: int) -> bool:
        """True only if the region shows nothing but glass."""
        return bool(self._depth_range_um(x_l0, y_l0, width_px, height_px)[1] < -EDGE_REACH_UM)

    def lesion_geojson(self) -> dict[str, Any]:
        """FeatureCollection of the lesions as QuPath writes annotations, in level-0 pixels."""
        properties = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]},
                "properties": properties,
            }
            for ring in self.lesions
        ]
        return {"type": "FeatureCollection", "features": features}

    # ------------------------------------------------------------ one block

    def _block(self, bx: int, by: int) -> U32:
        """Colours (BLOCK_PX, BLOCK_PX) of a square of the fixed grid, RGBX bytes."""
        x_l0, y_l0 = bx * BLOCK_PX, by * BLOCK_PX
        shallowest, deepest = self._depth_range_um(x_l0, y_l0, BLOCK_PX, BLOCK_PX)
        if deepest < -EDGE_REACH_UM:
            return np.full((BLOCK_PX, BLOCK_PX), self._palette.colours[0])
        canvas = self._background(x_l0, y_l0)  # H, 2W bytes
        self._paint_nuclei(canvas, x_l0, y_l0)
        self._paint_fat(canvas, x_l0, y_l0)
        self._paint_glands(canvas, x_l0, y_l0)
        thickness = self._thickness.grid(self._axis_um(x_l0), self._axis_um(y_l0))
        density: F32 = (0.86 + 0.07 * thickness).clip(0.6, 1).astype(np.float32)
        if shallowest < EDGE_REACH_UM:
            density *= self._edge_opacity(canvas, x_l0, y_l0)
        scaled = stain.spread(canvas.view(np.uint16)) * (256 * density).astype(np.uint32)
        pairs = stain.join(scaled >> np.uint32(8) & stain.SPREAD_MASK)
        colours: U32 = self._palette.colours.take(pairs)
        return colours

    def _axis_um(self, start_px: int) -> Floats:
        axis: Floats = (start_px + np.arange(BLOCK_PX) + 0.5) * self.spec.mpp
        return axis

    def _background(self, x_l0: int, y_l0: int) -> U8:
        """Collagen fibres, blended to cytoplasm where cells are dense: stain bytes (H, 2W)."""
        mpp, period = self.spec.mpp, stain.TEXTURE_PX
        x_um, y_um = self._axis_um(x_l0), self._axis_um(y_l0)
        along, across = (
            (position * np.float32(1 / mpp) + POSITIVE_PX).astype(np.int32) & period - 1
            for position in self._fibre_coordinates_um(x_um, y_um)
        )
        fibre = self._palette.fibre.take(across * period + along)  # H, W
        top, left = y_l0 % period, x_l0 % period  # blocks divide the period
        plain = self._palette.cytoplasm.reshape(period, period)
        cytoplasm = plain[top : top + BLOCK_PX, left : left + BLOCK_PX]
        columns, rows = self._cells(x_l0, CELL_UM, 0), self._cells(y_l0, CELL_UM, 0)
        zones = self._zones(columns, rows, CELL_UM)
        filled = np.maximum(zones.cellular, 0.6 * zones.lymphoid)
        x_basis, y_basis = _cell_basis(columns, x_um, CELL_UM), _cell_basis(rows, y_um, CELL_UM)
        alpha = (256 * stain.interpolate(y_basis, filled, x_basis)).astype(np.uint32)
        mixed = fibre * (256 - alpha) + cytoplasm * alpha
        return stain.join(mixed >> np.uint32(8) & stain.SPREAD_MASK).view(np.uint8)

    def _fibre_coordinates_um(self, x_um: Floats, y_um: Floats) -> tuple[F32, F32]:
        """Position along and across the fibres at grid crossings, each (H, W)."""
        cos, sin = np.cos(self._fibre_angle), np.sin(self._fibre_angle)
        along_x, along_y, across_x, across_y = (
            (axis * slope).astype(np.float32) for axis, slope in ((x_um, cos), (y_um, sin), (x_um, -sin), (y_um, cos))
        )
        along = np.float32(45) * self._bend_along.grid(x_um, y_um) + along_x + along_y[:, None]
        across = np.float32(60) * self._bend_across.grid(x_um, y_um) + across_x + across_y[:, None]
        return along, across

    def _fibre_angles(self, x_um: Floats, y_um: Floats) -> F32:
        """Direction of the fibres at grid crossings, radians from x towards y: (H, W)."""
        across = self._fibre_coordinates_um(x_um, y_um)[1]
        to_right = self._fibre_coordinates_um(x_um + 2, y_um)[1] - across
        to_below = self._fibre_coordinates_um(x_um, y_um + 2)[1] - across
        angle: F32 = np.arctan2(-to_right, to_below)
        return angle

    def _cells(self, start_px: int, cell_um: float, reach_um: float) -> NDArray[np.int64]:
        """Indices along one axis of the grid cells within reach of a block, and two more for the spline."""
        start_um, stop_um = (
            start_px * self.spec.mpp - reach_um,
            (start_px + BLOCK_PX) * self.spec.mpp + reach_um,
        )
        return np.arange(int(start_um // cell_um) - 2, int(stop_um // cell_um) + 3)

    def _zones(self, columns: NDArray[np.int64], rows: NDArray[np.int64], cell_um: float) -> _Zones:
        """What grows in the cells of a grid."""
        x_um, y_um = (columns + 0.5) * cell_um, (rows + 0.5) * cell_um
        fine = self._cellularity_fine.grid(x_um, y_um)
        cellular = np.clip((self._cellularity.grid(x_um, y_um) + 0.45 * fine) / 0.35 + 0.65, 0, 1)
        lymphoid = np.clip((self._lymphoid.grid(x_um, y_um) - 0.75) / 0.4, 0, 1)
        site = self._in_site(*np.meshgrid(x_um, y_um))
        return _Zones(
            np.where(site, np.clip(0.45 + 0.3 * fine, 0, 1), cellular), np.where(site, np.float32(0), lymphoid)
        )

    def _in_site(self, x_um: F64, y_um: F64) -> NDArray[np.bool_]:
        """Whether points lie in the polygon of a lesion, or of what would be one with a tumour."""
        inside = np.zeros(x_um.shape, bool)
        for site in self._sites:
            near = site.near(x_um, y_um, 0)
            if near.any():
                points_l0 = np.stack([x_um[near], y_um[near]], -1) / self.spec.mpp
                inside[near] |= points_in_polygon(points_l0, site.ring_l0)
        return inside

    def _clear_of_sites(self, x_um: F64, y_um: F64, reach_um: float) -> NDArray[np.bool_]:
        clear = np.ones(x_um.shape, bool)
        for site in self._sites:
            clear &= ~site.near(x_um, y_um, reach_um)
        return clear

    # ------------------------------------------------------------ objects

    def _paint_nuclei(self, canvas: U8, x_l0: int, y_l0: int) -> None:
        """One nucleus at most per cell of a grid; where there is tumour, per cell of a wider grid."""
        columns, rows = (self._cells(start, CELL_UM, NUCLEUS_REACH_UM) for start in (x_l0, y_l0))
        zones = self._zones(columns, rows, CELL_UM)
        angle = self._fibre_angles((columns + 0.5) * CELL_UM, (rows + 0.5) * CELL_UM).ravel()
        x_um, y_um, pick, choice = _jittered(columns, rows, CELL_UM, 0.75, self._key)
        cellular, lymphoid = zones.cellular.ravel(), zones.lymphoid.ravel()
        to_lymphocyte = 0.012 + 0.85 * lymphoid
        to_normal = to_lymphocyte + 0.66 * cellular * (1 - lymphoid)
        to_spindle = to_normal + 0.13 * (1 - cellular) * (1 - lymphoid)
        if self.spec.tumour:
            in_lesion = self._in_site(x_um, y_um)
            to_lymphocyte, to_normal, to_spindle = (
                np.where(in_lesion, p, q) for p, q in ((0.012, to_lymphocyte), (0.05, to_normal), (0, to_spindle))
            )
        kind = (pick >= to_lymphocyte).astype(int) + (pick >= to_normal) + (pick >= to_spindle)
        for name, which in (("lymphocyte", kind == 0), ("normal", kind == 1), ("spindle", kind == 2)):
            stamps = _picked(self._palette.nuclei[name], _stamp_index(name, angle[which], choice[which]))
            self._paste_all(canvas, stamps, x_um[which], y_um[which], x_l0, y_l0)
        if self.spec.tumour:
            self._paint_tumour(canvas, x_l0, y_l0)

    def _paint_tumour(self, canvas: U8, x_l0: int, y_l0: int) -> None:
        columns, rows = (self._cells(start, TUMOUR_CELL_UM, NUCLEUS_REACH_UM) for start in (x_l0, y_l0))
        x_um, y_um, pick, choice = _jittered(columns, rows, TUMOUR_CELL_UM, 0.65, self._key + 1)
        which = (pick < 0.72) & self._in_site(x_um, y_um)
        stamps = self._palette.nuclei["tumour"]
        picked = _picked(stamps, (choice[which] * len(stamps)).astype(int))
        self._paste_all(canvas, picked, x_um[which], y_um[which], x_l0, y_l0)

    def _paint_fat(self, canvas: U8, x_l0: int, y_l0: int) -> None:
        """Fat cells, nearly touching, in a few places."""
        columns, rows = (self._cells(start, FAT_CELL_UM, 60) for start in (x_l0, y_l0))
        fat = self._fat.grid((columns + 0.5) * FAT_CELL_UM, (rows + 0.5) * FAT_CELL_UM).ravel()
        x_um, y_um, pick, choice = _jittered(columns, rows, FAT_CELL_UM, 0.3, self._key + 2)
        which = (fat > 1.5) & (pick < 0.97) & self._clear_of_sites(x_um, y_um, 50) & (self._depth_at(x_um, y_um) > 60)
        stamps = self._palette.fat
        picked = _picked(stamps, (choice[which] * len(stamps)).astype(int))
        self._paste_all(canvas, picked, x_um[which], y_um[which], x_l0, y_l0)

    def _paint_glands(self, canvas: U8, x_l0: int, y_l0: int) -> None:
        """Glands in the middle of cellular zones, vessels elsewhere."""
        columns, rows = (self._cells(start, GLAND_CELL_UM, 130) for start in (x_l0, y_l0))
        zones = self._zones(columns, rows, GLAND_CELL_UM)
        fat = self._fat.grid((columns + 0.5) * GLAND_CELL_UM, (rows + 0.5) * GLAND_CELL_UM).ravel()
        x_um, y_um, pick, choice = _jittered(columns, rows, GLAND_CELL_UM, 0.2, self._key + 3)
        free = self._clear_of_sites(x_um, y_um, 95) & (self._depth_at(x_um, y_um) > 90) & (fat < 1.2)
        glandular = zones.cellular.ravel() > 0.3
        gland, vessel = free & glandular & (pick < 0.85), free & ~glandular & (pick < 0.22)
        for stamps, which in ((self._palette.glands, gland), (self._palette.vessels, vessel)):
            picked = _picked(stamps, (choice[which] * len(stamps)).astype(int))
            self._paste_all(canvas, picked, x_um[which], y_um[which], x_l0, y_l0)

    def _paste_all(
        self,
        canvas: U8,
        stamps: Iterable[stamp.Stamp],
        x_um: F64,
        y_um: F64,
        x_l0: int,
        y_l0: int,
    ) -> None:
        """Paste the i-th stamp at (x_um[i], y_um[i]), in this order."""
        x_px = np.floor(x_um / self.spec.mpp).astype(int) - x_l0
        y_px = np.floor(y_um / self.spec.mpp).astype(int) - y_l0
        for drawn, x, y in zip(stamps, x_px.tolist(), y_px.tolist(), strict=True):
            stamp.paste(canvas, drawn, x, y)

    # ------------------------------------------------------------ tissue edge

    def _depth_at(self, x_um: F64, y_um: F64) -> F32:
        """Distance from the tissue's edge in µm, negative on glass, to the nearest COARSE_PX."""
        cell_um = COARSE_PX * self.spec.mpp
        rows = np.clip((y_um // cell_um).astype(int) + 1, 0, self._depth_um.shape[0] - 1)
        cols = np.clip((x_um // cell_um).astype(int) + 1, 0, self._depth_um.shape[1] - 1)
        depth: F32 = self._depth_um[rows, cols]
        return depth

    def _depth_range_um(self, x_l0: int, y_l0: int, width_px: int, height_px: int) -> tuple[float, float]:
        """Bounds on the distance from the tissue's edge anywhere in a region, negative on glass."""
        rows, cols = (
            np.clip(np.arange(start // COARSE_PX, -(-(start + size) // COARSE_PX)) + 1, 0, limit - 1)
            for start, size, limit in (
                (y_l0, height_px, self._depth_um.shape[0]),
                (x_l0, width_px, self._depth_um.shape[1]),
            )
        )
        depth = self._depth_um[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        slack_um = 2 * COARSE_PX * self.spec.mpp
        return float(depth.min()) - slack_um, float(depth.max()) + slack_um

    def _edge_opacity(self, canvas: U8, x_l0: int, y_l0: int) -> F32:
        """Opacity (H, W) of the tissue in a block at its edge, frayed like the fibres that `canvas` shows."""
        softness_px = 2.0 / (EDGE_PX * self.spec.mpp)
        pad = int(np.ceil(4 * softness_px)) + 2
        size = BLOCK_PX // EDGE_PX + 2 * pad
        origin = np.array([x_l0, y_l0]) - pad * EDGE_PX
        drawn = Image.new("L", (size, size))
        for ring in self.tissue:
            points = (ring - origin) / EDGE_PX - 0.5
            ImageDraw.Draw(drawn).polygon([tuple(p) for p in points.tolist()], fill=1)
        inside = ndimage.gaussian_filter(np.asarray(drawn, np.float32), softness_px)
        first, basis = stain.spline_basis((np.arange(BLOCK_PX) + 0.5) / EDGE_PX + pad - 0.5)
        nodes = inside[first : first + basis.shape[1], first : first + basis.shape[1]]
        eosin = canvas.reshape(BLOCK_PX, BLOCK_PX, 2)[..., 0]
        smooth = stain.interpolate(basis, nodes, basis)
        frayed = smooth + (eosin.astype(np.float32) - 85) * (0.004 * 4 * smooth * (1 - smooth))
        opacity: F32 = np.clip(0.5 + (frayed - 0.5) * 4, 0, 1)
        return opacity


# ---------------------------------------------------------------- grids


def _cell_basis(cells: NDArray[np.int64], at_um: Floats, cell_um: float) -> F32:
    """Spline matrix (len(at_um), len(cells)) from values in the middle of grid cells to positions."""
    first, basis = stain.spline_basis(at_um / cell_um - 0.5)
    whole = np.zeros((len(at_um), len(cells)), np.float32)
    whole[:, first - cells[0] : first - cells[0] + basis.shape[1]] = basis
    return whole


def _jittered(
    columns: NDArray[np.int64], rows: NDArray[np.int64], cell_um: float, jitter: float, key: int
) -> tuple[F64, F64, F64, F64]:
    """A point per grid cell, row by row: x_um, y_um and two uniform numbers, each (rows * columns,).

    Every other row is shifted by half a cell, like a honeycomb, and jitter moves the points off the grid.
    """
    ix, iy = (a.ravel() for a in np.meshgrid(columns, rows))
    jx, jy, pick, choice = stain.hash_uniforms(ix, iy, key)
    x_um, y_um = ((i + 0.5 + jitter * (j - 0.5)) * cell_um for i, j in ((ix + iy % 2 / 2, jx), (iy, jy)))
    return x_um, y_um, pick, choice


def _picked(stamps: Sequence[stamp.Stamp], index: NDArray[np.int64]) -> Iterator[stamp.Stamp]:
    return (stamps[i] for i in index.tolist())


def _stamp_index(name: str, angle: F32, choice: F64) -> NDArray[np.int64]:
    """Which stamp of a library to use: spindles lie along the fibres, the others anyhow."""
    per_angle = stamp.STAMPS_PER_ANGLE[name]
    if name != "spindle":
        return (choice * per_angle * stamp.ANGLES).astype(np.int64)
    angle_bin = np.rint(angle / np.pi * stamp.ANGLES).astype(np.int64) % stamp.ANGLES
    index: NDArray[np.int64] = angle_bin * per_angle + (choice * per_angle).astype(np.int64)
    return index


def write_phantom(spec: PhantomSpec, path: Path) -> Phantom:
    """Write a phantom as `.svs` (Aperio's form) or `.tiff` (generic pyramid), whole or not at all."""
    phantom = Phantom(spec)
    write_pyramid(phantom, path)
    return phantom

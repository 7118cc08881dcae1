"""Settings of `tile-slides`."""

from dataclasses import dataclass
from typing import Literal

from tiling.jobs.command import setting
from tiling.slides.slide import MPP_MAX, MPP_MIN
from tiling.tissue.methods import package_of


@dataclass(frozen=True)
class TilingConfig:
    """What decides about the patches, then how the job runs. Raises ValueError for impossible values."""

    mpp: float | Literal["native"] = setting(
        0.5, "scale of the patches in µm per pixel, or `native`: level-0 pixels as they are"
    )
    patch_px: int = setting(512, "side of a patch in pixels at that scale")
    overlap_px: int = setting(0, "overlap of neighbouring patches in pixels at that scale")
    tissue: str = setting(
        "otsu",
        "how tissue is found: by colour (otsu), by texture (entropy), `all`: the whole slide counts, or a mask that an "
        "installed package brings",
    )
    grid: Literal["fit", "origin"] = setting(
        "fit",
        "where patches lie: on the grid that covers the most tissue with the fewest, beyond the slide padded in its "
        "glass's colour (fit), or on the grid at (0, 0), wholly inside the slide (origin)",
    )
    min_tissue: float = setting(0.2, "least share of tissue in a patch, 0 to 1")
    max_pen: float = setting(1.0, "largest share of pen in a patch, 0 to 1")
    min_sharpness: float = setting(0.0, "least variance of a patch's Laplacian; 0 keeps blurred patches")
    pixels: Literal["jpeg", "zstd", "reference"] = setting(
        "jpeg", "how pixels are kept: jpeg, zstd (lossless), or reference (coordinates only)"
    )
    jpeg_quality: int = setting(90, "JPEG quality, 1 to 100")
    workers: int = setting(0, "cores to use: one slide each, several where slides are fewer; 0: all")
    stage: str = setting(
        "", "folder on a fast local disk: slides are copied there while others are tiled; needed for URLs"
    )
    stage_gb: float = setting(100.0, "most that these copies may take, those being tiled included, in GB")
    part: str = setting("", "do only part i/n of the slides (array jobs)")
    scheduler: str = setting("", "address of a Dask scheduler whose workers do the slides")
    overwrite: bool = setting(False, "replace outputs that were made with other settings")

    def __post_init__(self) -> None:
        if self.mpp != "native" and not MPP_MIN <= float(self.mpp) <= MPP_MAX:
            raise ValueError(f"--mpp is {self.mpp}, expected {MPP_MIN} to {MPP_MAX} µm per pixel, or native")
        if self.patch_px < 16:
            raise ValueError(f"--patch-px is {self.patch_px}, expected at least 16 pixels")
        if not 0 <= self.overlap_px < self.patch_px:
            raise ValueError(f"--overlap-px is {self.overlap_px}, expected 0 to {self.patch_px - 1}")
        package_of(self.tissue)
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"--min-tissue is {self.min_tissue}, expected 0 to 1")
        if not 0 <= self.max_pen <= 1:
            raise ValueError(f"--max-pen is {self.max_pen}, expected 0 to 1")
        if self.min_sharpness < 0:
            raise ValueError(f"--min-sharpness is {self.min_sharpness}, expected 0 or more")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"--jpeg-quality is {self.jpeg_quality}, expected 1 to 100")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}, expected 0 or more")
        if self.stage_gb <= 0:
            raise ValueError(f"--stage-gb is {self.stage_gb}, expected more than 0")

    def content(self) -> dict[str, object]:
        """The settings that decide about a store's content, as JSON values."""
        keys = ("mpp", "patch_px", "overlap_px", "tissue", "grid", "min_tissue", "max_pen", "min_sharpness", "pixels")
        package = package_of(self.tissue)
        brought = {"tissue_package": package} if package else {}
        return {key: getattr(self, key) for key in (*keys, "jpeg_quality")} | brought

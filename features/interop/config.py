"""Settings of `convert-features`."""

import math
from dataclasses import dataclass
from typing import Literal

from tiling.jobs.command import setting
from tiling.slides.slide import MPP_MAX, MPP_MIN


@dataclass(frozen=True)
class ConvertConfig:
    """What files do not say of themselves, then how they are written. Raises ValueError for impossible values."""

    encoder: str = setting("", "name of the network that made the features")
    patch_px: int | None = setting(None, "side of a patch in pixels, as it was read from the slide")
    patch_size_l0: int | None = setting(None, "side of a patch in level-0 pixels")
    patch_um: float | None = setting(None, "side of a patch in µm; gives the one in level-0 pixels where mpp is known")
    overlap_px: int | None = setting(None, "overlap of neighbouring patches in patch pixels; 0 for none")
    mpp_l0: float | Literal["none"] | None = setting(None, "µm per level-0 pixel, or `none`: the slides have no scale")
    width_l0: int | None = setting(None, "width of the slides in level-0 pixels")
    height_l0: int | None = setting(None, "height of the slides in level-0 pixels")
    clam_patches: str = setting("", "folder of CLAM's patching files (patches/<slide>.h5): they know the patch size")
    features_dtype: Literal["keep", "float16", "float32"] = setting(
        "keep", "type of the features; float32 becomes float16 only where you say so"
    )
    part: str = setting("", "do only part i/n of the slides (array jobs)")
    overwrite: bool = setting(False, "replace files that say something else")

    def __post_init__(self) -> None:
        for name, least in (
            ("patch_px", 1),
            ("patch_size_l0", 1),
            ("overlap_px", 0),
            ("width_l0", 1),
            ("height_l0", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")
        if self.patch_um is not None and not 0 < self.patch_um < math.inf:
            raise ValueError(f"--patch-um is {self.patch_um}, expected µm above 0")
        if isinstance(self.mpp_l0, float | int) and not MPP_MIN <= self.mpp_l0 <= MPP_MAX:
            raise ValueError(f"--mpp-l0 is {self.mpp_l0}, expected {MPP_MIN} to {MPP_MAX} µm per pixel, or none")

    @property
    def mpp_given(self) -> float | None:
        """NaN where the slides have no scale, None where nothing was said."""
        return math.nan if self.mpp_l0 == "none" else None if self.mpp_l0 is None else float(self.mpp_l0)

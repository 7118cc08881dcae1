"""Settings of `mil-demo`."""

from dataclasses import dataclass

from tiling.jobs.command import setting


@dataclass(frozen=True)
class DemoConfig:
    """Raises ValueError for a cohort that is too small to be split by patient."""

    patients: int = setting(28, "patients, half of them with tumour; each has one to three slides")
    side_px: int = setting(8192, "side of a slide in level-0 pixels at 0.25 µm per pixel")
    lesion_fraction: float = setting(0.03, "share of a tumour slide's tissue that is tumour, at most 0.05")
    encoder: str = setting("efficientnet-lite0", "backbone for extract-features")
    folds: int = setting(5, "folds of the cross-validation")
    workers: int = setting(0, "slides made and tiled at the same time; 0: one per core")
    seed: int = setting(0, "seed of slides, splits and training")

    def __post_init__(self) -> None:
        if self.patients < 4 * self.folds:
            raise ValueError(
                f"--patients is {self.patients}, expected at least {4 * self.folds} for {self.folds} folds"
            )
        if self.side_px < 2000:
            raise ValueError(f"--side-px is {self.side_px}, expected at least 2000")
        if not 0 < self.lesion_fraction <= 0.05:
            raise ValueError(f"--lesion-fraction is {self.lesion_fraction}, expected more than 0 and at most 0.05")

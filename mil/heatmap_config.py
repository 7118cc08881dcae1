"""Settings of `export-heatmaps`."""

from dataclasses import dataclass

from tiling.command import setting

FORMATS = ("png", "geojson")


@dataclass(frozen=True)
class HeatmapConfig:
    """Raises ValueError for a form that is not known."""

    formats: str = setting("png,geojson", "forms to write, separated by commas: png, geojson")
    opacity: float = setting(0.55, "opacity of the map over the tissue, 0 to 1")
    device: str = setting("auto", "device for slides that the run has no attention for: auto, cpu, cuda")
    workers: int = setting(0, "slides drawn at the same time; 0: one per core")
    overwrite: bool = setting(False, "replace heatmaps that were made differently")

    def __post_init__(self) -> None:
        unknown = [f for f in self.chosen_formats() if f not in FORMATS]
        if unknown or not self.chosen_formats():
            raise ValueError(f"--formats {self.formats}: expected one or more of {', '.join(FORMATS)}")
        if not 0 < self.opacity <= 1:
            raise ValueError(f"--opacity is {self.opacity}, expected more than 0 and at most 1")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}, expected 0 or more")

    def chosen_formats(self) -> list[str]:
        return [f.strip() for f in self.formats.split(",") if f.strip()]

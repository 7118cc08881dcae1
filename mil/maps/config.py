"""Settings of `export-heatmaps`."""

from dataclasses import dataclass
from typing import Literal

from mil.maps.forms.registry import FORMS
from tiling.jobs.command import setting


@dataclass(frozen=True)
class HeatmapConfig:
    """Raises ValueError for a form that is not known, and for settings that contradict each other."""

    formats: str = setting("png,geojson", f"forms to write, separated by commas: {', '.join(FORMS)}")
    score: Literal["auto", "attention", "logit", "contribution", "gradient"] = setting(
        "auto",
        "what is shown of a patch; auto: its contribution where the head's decision is a sum over patches, else its "
        "logit; logit, contribution and gradient speak of one class",
    )
    class_name: str = setting("", "class that the score speaks of; empty: the positive or the predicted one")
    attention_as: Literal["raw", "rank", "percentile"] = setting("raw", "how attention is shown")
    fold: int = setting(
        -1, "show this one fold's model (counted from 0, as fold-<k>), if it did not see the slide; -1: the mean"
    )
    opacity: float = setting(0.55, "opacity of the map over the tissue, 0 to 1")
    qupath_bounds: bool = setting(
        False, "count GeoJSON and OME-TIFF from the corner of the scanner's bounds, as QuPath does (MRXS)"
    )
    finer: int = setting(1, "tile, embed and judge again in steps of a patch's side / this; 4 gives a smooth map")
    weights: str = setting("", "for --finer: the file of the encoder's weights, unless these are its default ones")
    faithfulness: bool = setting(False, "measure whether the model's decision follows the score (deletion, insertion)")
    lesions: bool = setting(
        False, "measure the map against the polygons in the table's column annotation: patch AUROC, FROC, Dice"
    )
    device: str = setting("auto", "device where a model runs again: auto, cpu, cuda")
    workers: int = setting(0, "slides drawn at the same time; 0: one per core")
    scheduler: str = setting("", "address of a Dask scheduler whose workers do the slides")
    overwrite: bool = setting(False, "replace heatmaps that were made differently")

    def __post_init__(self) -> None:
        unknown = [f for f in self.chosen_formats() if f not in FORMS]
        if unknown or not self.chosen_formats():
            raise ValueError(f"--formats {self.formats}: expected one or more of {', '.join(FORMS)}")
        if not 0 < self.opacity <= 1:
            raise ValueError(f"--opacity is {self.opacity}, expected more than 0 and at most 1")
        if self.attention_as != "raw" and self.score != "attention":
            raise ValueError(f"--attention-as {self.attention_as} goes with --score attention, found {self.score}")
        if self.finer < 1:
            raise ValueError(f"--finer is {self.finer}, expected 1 (as tiled) or more steps a patch")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}, expected 0 or more")
        if self.fold < -1:
            raise ValueError(f"--fold is {self.fold}, expected the number of a fold, or -1 for the mean over models")

    def chosen_formats(self) -> list[str]:
        return [f.strip() for f in self.formats.split(",") if f.strip()]

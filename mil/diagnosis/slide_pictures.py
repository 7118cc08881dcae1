"""Thumbnails of slides that a finding names, side by side."""

from PIL import Image

from mil.diagnosis.finding import Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.sheet import sheet
from tiling.jobs.errors import SlideError
from tiling.store.patches import PatchStore

_PICTURES, _PICTURE_PX = 8, 220


def slide_pictures(inputs: Inputs, title: str, slides: list[int]) -> list[Picture]:
    """One sheet of the first slides at these positions whose store was given; none without --patches."""
    folder, cohort = inputs.sources.patches, inputs.cohort
    if folder is None:
        return []
    shown, names = [], []
    for i in slides[:_PICTURES]:
        try:
            image = Image.fromarray(PatchStore(folder / f"{cohort.slide_ids[i]}.zarr").thumbnail)
        except SlideError:
            continue
        image.thumbnail((_PICTURE_PX, _PICTURE_PX))
        shown.append(image)
        names.append(f"{cohort.slide_ids[i]} ({cohort.classes[cohort.labels[i]]})")
    if not shown:
        return []
    caption = f"From the left, row by row: {', '.join(names)}."
    return [Picture(title, caption, image=sheet(shown, _PICTURES // 2), wide=True)]

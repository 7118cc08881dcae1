"""What the out-of-fold models saw in a slide: `attention/<slide_id>.h5`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.feature_file import EmbeddingInfo
from features.hdf5 import atomic_hdf5
from mil.cohort.cohort import ID_SEPARATOR
from mil.tasks.registry import named, restored
from mil.tasks.task import Task
from tiling.jobs.errors import SlideError
from tiling.jobs.provenance import check_format

ATTENTION_FORMAT, ATTENTION_VERSION = "slidemil-attention", 2
_DATA_SETS = ("attention", "patch_logits", "coords")
_OPTIONAL_DATA_SETS = ("class_attention", "contributions")


@dataclass(frozen=True)
class SlideAttention:
    """What the out-of-fold models saw in one slide of N patches, with what is needed to draw it."""

    attention: NDArray[np.float32]  # (N,)
    patch_logits: NDArray[np.float32]  # (N, C)
    coords: NDArray[np.int64]  # (N, 2) level-0 (x, y)
    slide_id: str
    label: str
    task: Task
    probabilities: NDArray[np.float64]  # (C,) the task's answer for the slide
    patch_size_l0: int
    overlap_px: int
    patch_size_px: int
    width_l0: int
    height_l0: int
    mpp_l0: float  # NaN if the slide has no scale
    patient_id: str = ""  # whose slides were one bag; empty where the slide was one
    bag: str = ""  # ids of all slides of that patient, as in predictions.csv
    class_attention: NDArray[np.float32] | None = None  # (N, C), where the head has an attention for each class
    contributions: NDArray[np.float32] | None = None  # (N, C), where the slide's logits are a sum over patches

    @property
    def classes(self) -> tuple[str, ...]:
        """C names, the task's outputs."""
        return self.task.output_names

    @property
    def share(self) -> float:
        """Of the attention in the slide's bag: 1 unless the bag is a patient."""
        return float(self.attention.sum(dtype=np.float64)) if self.patient_id else 1.0


@dataclass(frozen=True)
class SlidePrediction:
    """What one model says of a bag of N patches and C outputs, or the mean over several."""

    answer: NDArray[np.float64]  # (C,), calibrated
    attention: NDArray[np.float32]  # (N,), sums to 1
    patch_logits: NDArray[np.float32]  # (N, C), as contributions in the unit of calibrated logits
    spread: float  # standard deviation over models of the output that the task watches
    class_attention: NDArray[np.float32] | None = None  # (N, C), where the head has one an output
    contributions: NDArray[np.float32] | None = None  # (N, C), where the head's logits are a sum over patches

    def part(self, rows: slice) -> "SlidePrediction":
        """The same of some of the bag's patches, those of one slide."""
        of_patches = ("attention", "patch_logits", "class_attention", "contributions")
        given = {name: value[rows] for name in of_patches if (value := getattr(self, name)) is not None}
        return replace(self, **given)


def describe_attention(
    info: EmbeddingInfo, coords_l0: NDArray[np.int64], prediction: SlidePrediction, task: Task, label: str
) -> SlideAttention:
    """What models saw in the slide that `info` describes, whose patches lie at coords_l0 (N, 2)."""
    return SlideAttention(
        attention=prediction.attention,
        patch_logits=prediction.patch_logits,
        class_attention=prediction.class_attention,
        contributions=prediction.contributions,
        coords=coords_l0,
        slide_id=info.slide_id,
        label=label,
        task=task,
        probabilities=prediction.answer,
        patch_size_l0=info.patch_size_l0,
        overlap_px=info.overlap_px,
        patch_size_px=info.patch_size_px,
        width_l0=info.width_l0,
        height_l0=info.height_l0,
        mpp_l0=info.mpp_l0,
    )


def attention_path(run: Path, slide_id: str) -> Path:
    return run / "attention" / f"{slide_id}.h5"


def describe_bag(
    slides: Sequence[tuple[EmbeddingInfo, NDArray[np.int64]]],
    prediction: SlidePrediction,
    task: Task,
    label: str,
    patient: str,
) -> list[SlideAttention]:
    """What models saw in each slide of a bag: its info and coords_l0 (N, 2), in the order of the bag's patches.

    patient: whose bag it is; empty where the bag is one slide.
    """
    described, start = [], 0
    bag = ID_SEPARATOR.join(info.slide_id for info, _ in slides) if patient else ""
    for info, coords_l0 in slides:
        own = prediction.part(slice(start, start := start + len(coords_l0)))
        described.append(replace(describe_attention(info, coords_l0, own, task, label), patient_id=patient, bag=bag))
    return described


def write_attention(path: Path, slide: SlideAttention) -> None:
    data = {name: vars(slide)[name] for name in (*_DATA_SETS, *_OPTIONAL_DATA_SETS) if vars(slide)[name] is not None}
    with atomic_hdf5(path) as file:
        for name, value in data.items():
            file.create_dataset(name, data=value, track_times=False)
        for name, value in vars(slide).items():
            if name == "task":
                file.attrs.update({**named(slide.task), **_without_none(slide.task.provenance())})
            elif name not in (*_DATA_SETS, *_OPTIONAL_DATA_SETS):
                file.attrs[name] = value
        file.attrs.update(format=ATTENTION_FORMAT, version=ATTENTION_VERSION)


def read_attention(path: Path) -> SlideAttention:
    """Raises SlideError if the file is missing, unreadable or of another version."""
    try:
        with h5py.File(path, "r") as file:
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
            check_format(attributes, ATTENTION_FORMAT, ATTENTION_VERSION, path, still_read=(1,))
            data = {name: file[name][:] for name in _DATA_SETS}
            data |= {name: file[name][:] for name in _OPTIONAL_DATA_SETS if name in file}
    except FileNotFoundError:
        raise SlideError(f"{path}: no attention for this slide; the run did not test it") from None
    except (OSError, KeyError) as error:
        raise SlideError(f"{path}: not a readable attention file ({error}); train again") from error
    own = {field.name for field in fields(SlideAttention)} - {"task"}
    of_slide = {name: value for name, value in attributes.items() if name in own}
    of_task = {name: value for name, value in attributes.items() if name not in (*own, "format", "version")}
    return SlideAttention(**of_slide, **data, task=restored(of_task))


def read_bag(run: Path, slide_id: str) -> list[SlideAttention]:
    """The slide, then the other slides of its bag. Raises SlideError as `read_attention` does."""
    own = read_attention(attention_path(run, slide_id))
    others = [name for name in own.bag.split(ID_SEPARATOR) if name not in ("", slide_id)]
    return [own, *(read_attention(attention_path(run, name)) for name in others)]


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """HDF5 has no attribute for None; it is empty text there."""
    return {name: "" if value is None else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Scalars and lists of text are Python's own, numbers stay arrays."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value

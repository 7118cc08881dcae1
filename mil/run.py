"""CONTRACT run directory, what train-mil writes. Version 2.

    config.yaml                        settings and inputs, usable as `train-mil --config`
    provenance.json                    what the run was made from
    splits.csv                         repeat, fold, slide_id, patient_id, split (train, val or test)
    fold-<k>/checkpoint.safetensors    the kept epoch's weights; k counts the folds of all repeats, from 0
    fold-<k>/history.csv               epoch, learning_rate, train_loss, val_loss, val_auroc, stop_loss,
                                       worst_step (slides of the step with the highest loss, parted by spaces; absent
                                       for heads that have no steps)
    predictions.csv                    slide_id, patient_id, repeat, fold, label, prediction, prob_<class>…
    predictions_patient.csv            patient_id, repeat, fold, slides, label, prediction, prob_<class>…
    attention/<slide_id>.h5            attention (N,) float32; patch_logits (N, C) float32; coords (N, 2) int64;
                                       class_attention, contributions (N, C) float32 where the head has them
    failures.csv                       slide_id, reason of labelled slides that are not used; absent if all are
    training.safetensors               the distribution of the training slides' mean embeddings, their fingerprints
    curves.png, roc.png                drawn from the above
    metrics.json                       slide, patient, folds, against_mean, counts (patch too for patch-label-copy)
    pictures/thumbnails/<slide_id>.jpg and pictures/patches/<slide_id>.jpg
                                       the slide with its most weighty patches outlined, and these patches, for those
                                       slides whose patch store was found
    report.html                        all of this on one page that loads from disk alone
    tensorboard/fold-<k>/              events for TensorBoard
    wandb/                             local files of Weights & Biases, if tracked there

Every file but those of TensorBoard and Weights & Biases MUST be written whole or not at all; a fold folder is one unit.
`provenance.json` MUST be written first and MUST hold `format`, `version`, target, classes (sorted), the positive
class (null unless there are two), the head, how the features were made and at how many µm per pixel, digests of
features and labels, the ids of labelled slides that are left out, the settings, the kind of device and the package
versions; it MUST NOT hold a time or a path, so that the same request
gives the same bytes. A reader MUST refuse another format or version. `metrics.json` MUST be written last: a run is
complete if and only if it exists; only `failures.csv`, `pictures` and `report.html`, which are made from complete runs
and can be made again at any time, come after it. A finished fold MUST NOT be written again. Models that are trained
together are written when all of them have ended, so a group of them that is killed starts again, from its first epoch.
All other files, those of TensorBoard and Weights & Biases excepted, MUST be the same bytes when the same request is run
again on the same machine, stopped in between or not.

The kept epoch is that with the lowest `stop_loss`, which is empty where an epoch comes too early to be kept, or the
last one where there is no validation part (then the threshold is 0.5).
Predictions MUST be out of fold: from models that saw neither the slide nor its patient. `prob_<class>` sums to 1
over the classes; it is calibrated: the logits are divided by the fold's temperature. For two classes a slide is
predicted positive where its probability reaches the threshold chosen on the fold's validation part; else the most
probable class is predicted. In `predictions_patient.csv` the label is empty if a patient's slides carry different
labels.

A checkpoint's metadata is one JSON text under the key `slidemil` (safetensors keeps no order of keys): head,
shape, classes, positive, threshold (null unless there are two classes), temperature. The threshold is one of
calibrated probabilities. Its tensors include `mean` and `std`,
with which features are standardised.

`metrics.json`: `slide` and `patient` hold {value, low, high} for each figure of mil.metrics, or one of these for each
class; `folds` a list of the overall figures of each repeat and fold; `against_mean` how the slides' AUROC differs from
that of mil.baseline on the same folds (value, low, high, p, p_delong) and the baseline's own (`auroc`).

`training.safetensors` holds the fields of mil.novelty.TrainingSlides, and under the metadata key `slidemil` the known
slide fingerprints by slide id.

Version 1 had no temperature (it was 1), no training.safetensors, and fewer figures; it can still be read.

An attention file is the mean over the repeats that tested the slide. `attention` is >= 0 and sums to 1. Where the
head has them there are `class_attention` (N, C), of which each column sums to 1 (`attention` is then that of the class
predicted), and `contributions` (N, C), which sum to the slide's logits before the temperature. `coords`
are level-0 (x, y) of the patches' top-left corners, row for row those of the feature file. Attributes: format,
version and the fields of `SlideAttention` that are not data sets; what features of another tool did not say is 0
(sizes), -1 (the overlap) or NaN (the scale).
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import safetensors
import safetensors.numpy
import yaml
from numpy.typing import NDArray

from features.embeddings import EmbeddingInfo
from mil.novelty import TrainingSlides
from tiling.artifact import atomic_file, atomic_folder, atomic_hdf5, check_format, write_json, write_text
from tiling.errors import RequestError, SlideError

FORMAT, VERSION = "slidemil-run", 2
_READABLE = (1, 2)
ATTENTION_FORMAT, ATTENTION_VERSION = "slidemil-attention", 1
LOCK = "train"  # train.lock is held while the run is written
_METADATA = "slidemil"
_FILES = (
    *("config.yaml", "provenance.json", "splits.csv", "predictions.csv", "predictions_patient.csv"),
    *("training.safetensors", "curves.png", "roc.png", "report.html"),
)
_FOLDERS = ("attention", "pictures", "tensorboard", "wandb")
PICTURES = ("thumbnails", "patches")
_DATA_SETS = ("attention", "patch_logits", "coords")
_OPTIONAL_DATA_SETS = ("class_attention", "contributions")


@dataclass(frozen=True)
class Checkpoint:
    """One fold's model. `shape` are the fields of mil.models.HeadShape."""

    head: str
    shape: dict[str, Any]
    classes: tuple[str, ...]
    positive: int | None
    threshold: float | None  # of the positive class's calibrated probability; None unless there are two classes
    tensors: dict[str, NDArray[Any]]
    temperature: float = 1.0  # by which logits are divided, see mil.calibration


@dataclass(frozen=True)
class SlideAttention:
    """What the out-of-fold models saw in one slide of N patches, with what is needed to draw it."""

    attention: NDArray[np.float32]  # (N,)
    patch_logits: NDArray[np.float32]  # (N, C)
    coords: NDArray[np.int64]  # (N, 2) level-0 (x, y)
    slide_id: str
    label: str
    classes: tuple[str, ...]
    positive: str  # positive class; empty unless there are two classes
    probabilities: NDArray[np.float64]  # (C,) of the slide
    patch_size_l0: int
    overlap_px: int
    patch_size_px: int
    width_l0: int
    height_l0: int
    mpp_l0: float  # NaN if the slide has no scale
    class_attention: NDArray[np.float32] | None = None  # (N, C), where the head has an attention for each class
    contributions: NDArray[np.float32] | None = None  # (N, C), where the slide's logits are a sum over patches


def describe_attention(
    info: EmbeddingInfo,
    coords_l0: NDArray[np.int64],
    *,
    attention: NDArray[np.float32],
    patch_logits: NDArray[np.float32],
    class_attention: NDArray[np.float32] | None = None,
    contributions: NDArray[np.float32] | None = None,
    probabilities: NDArray[np.float64],
    label: str,
    classes: tuple[str, ...],
    positive: int | None,
) -> SlideAttention:
    """What models saw in the slide that `info` describes; shapes as in SlideAttention."""
    return SlideAttention(
        attention=attention,
        patch_logits=patch_logits,
        class_attention=class_attention,
        contributions=contributions,
        coords=coords_l0,
        slide_id=info.slide_id,
        label=label,
        classes=classes,
        positive="" if positive is None else classes[positive],
        probabilities=probabilities,
        patch_size_l0=info.patch_size_l0,
        overlap_px=info.overlap_px,
        patch_size_px=info.patch_size_px,
        width_l0=info.width_l0,
        height_l0=info.height_l0,
        mpp_l0=info.mpp_l0,
    )


def is_complete(run: Path) -> bool:
    return (run / "metrics.json").exists()


def fold_folder(run: Path, number: int) -> Path:
    return run / f"fold-{number}"


def attention_path(run: Path, slide_id: str) -> Path:
    return run / "attention" / f"{slide_id}.h5"


def picture_path(run: Path, kind: str, slide_id: str) -> Path:
    """kind: one of PICTURES."""
    return run / "pictures" / kind / f"{slide_id}.jpg"


def pictured_slides(run: Path) -> set[str]:
    """Ids of the slides that have all PICTURES."""
    return set.intersection(*({path.stem for path in (run / "pictures" / kind).glob("*.jpg")} for kind in PICTURES))


def tensorboard_folder(run: Path, number: int) -> Path:
    return run / "tensorboard" / f"fold-{number}"


def clear(run: Path) -> None:
    """Remove what the contract names, metrics.json first, and nothing else."""
    (run / "metrics.json").unlink(missing_ok=True)
    for path in run.glob("*"):
        if path.is_dir() and (path.name in _FOLDERS or re.fullmatch(r"fold-\d+", path.name)):
            shutil.rmtree(path)
        elif path.name in _FILES:
            path.unlink()


def clear_temporaries(run: Path) -> None:
    """Remove what a killed job left half written. The caller holds the lock."""
    for path in [*run.glob(".*.tmp-*"), *run.glob("attention/.*.tmp-*"), *run.glob("pictures/*/.*.tmp-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_config(run: Path, settings: Mapping[str, Any]) -> None:
    write_text(run / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))


def write_provenance(run: Path, provenance: Mapping[str, Any]) -> None:
    write_json(run / "provenance.json", {**provenance, "format": FORMAT, "version": VERSION})


def read_provenance(run: Path) -> dict[str, Any] | None:
    """Without format and version; None if there is none. RequestError if it is of another format or version."""
    path = run / "provenance.json"
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_format(values, FORMAT, values["version"] if values.get("version") in _READABLE else VERSION, path)
    except (SlideError, ValueError, AttributeError) as error:
        raise RequestError(f"not a run directory that can be read: {error}") from error
    return {key: value for key, value in values.items() if key not in ("format", "version")}


def require_complete(run: Path) -> dict[str, Any]:
    """The provenance of a finished run. RequestError if `run` is none."""
    provenance = read_provenance(run)
    if provenance is None:
        raise RequestError(f"{run}: no run directory (provenance.json is missing); train one with train-mil")
    if not is_complete(run):
        raise RequestError(f"{run}: this run is not finished; run the same train-mil command again to go on")
    return provenance


def write_splits(run: Path, table: pd.DataFrame) -> None:
    _write_csv(run / "splits.csv", table)


def read_splits(run: Path) -> pd.DataFrame:
    return _read_csv(run / "splits.csv")


def write_fold(run: Path, number: int, checkpoint: Checkpoint, history: pd.DataFrame) -> None:
    described = {key: value for key, value in vars(checkpoint).items() if key != "tensors"}
    metadata = {_METADATA: json.dumps(described, sort_keys=True)}
    with atomic_folder(fold_folder(run, number)) as folder:
        safetensors.numpy.save_file(checkpoint.tensors, folder / "checkpoint.safetensors", metadata)
        history.to_csv(folder / "history.csv", index=False)


def fold_numbers(run: Path) -> list[int]:
    """Numbers of the finished folds, rising."""
    names = [re.fullmatch(r"fold-(\d+)", path.name) for path in run.glob("fold-*")]
    return sorted(int(match[1]) for match in names if match)


def read_checkpoint(run: Path, number: int) -> Checkpoint:
    path = fold_folder(run, number) / "checkpoint.safetensors"
    try:
        with safetensors.safe_open(path, framework="np") as file:
            described = json.loads(file.metadata()[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RequestError(f"{path}: not a checkpoint of train-mil ({error}); train again") from error
    return Checkpoint(**{**described, "classes": tuple(described["classes"])}, tensors=tensors)


def read_history(run: Path, number: int) -> pd.DataFrame:
    return pd.read_csv(fold_folder(run, number) / "history.csv")


def kept_epoch(history: pd.DataFrame) -> int:
    """The row of `history` whose weights the checkpoint holds."""
    losses = history["stop_loss" if "stop_loss" in history else "val_loss"].to_numpy()  # older runs kept the lowest
    return len(losses) - 1 if np.isnan(losses).all() else int(np.nanargmin(losses))


def write_predictions(run: Path, slides: pd.DataFrame, patients: pd.DataFrame) -> None:
    _write_csv(run / "predictions.csv", slides)
    _write_csv(run / "predictions_patient.csv", patients)


def read_predictions(run: Path) -> pd.DataFrame:
    return _read_csv(run / "predictions.csv")


def read_patient_predictions(run: Path) -> pd.DataFrame:
    return _read_csv(run / "predictions_patient.csv")


def write_training_slides(run: Path, slides: TrainingSlides, fingerprints: Mapping[str, str]) -> None:
    """fingerprints: of the slide files by slide id, as far as they are known."""
    tensors = {name: np.asarray(value) for name, value in vars(slides).items()}
    metadata = {_METADATA: json.dumps(dict(fingerprints), sort_keys=True)}
    with atomic_file(run / "training.safetensors") as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata)


def read_training_slides(run: Path) -> tuple[TrainingSlides | None, dict[str, str]]:
    """What `write_training_slides` was given; none and no fingerprints for a run of version 1."""
    path = run / "training.safetensors"
    if not path.exists():
        return None, {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            fingerprints: dict[str, str] = json.loads(file.metadata()[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RequestError(f"{path}: not a file of train-mil ({error}); train again") from error
    numbers = {name: tensors.pop(name).item() for name in ("floor", "limit")}
    return TrainingSlides(**tensors, **numbers), fingerprints


def write_failures(run: Path, left_out: Mapping[str, str]) -> None:
    path = run / "failures.csv"
    if left_out:
        _write_csv(path, pd.DataFrame({"slide_id": list(left_out), "reason": list(left_out.values())}))
    else:
        path.unlink(missing_ok=True)


def read_failures(run: Path) -> pd.DataFrame:
    """slide_id and reason; no row if all labelled slides are used."""
    path = run / "failures.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame()


def write_metrics(run: Path, metrics: Mapping[str, Any]) -> None:
    """This makes the run complete."""
    write_json(run / "metrics.json", metrics)


def read_metrics(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def write_attention(path: Path, slide: SlideAttention) -> None:
    fields = vars(slide)
    data = {name: fields[name] for name in (*_DATA_SETS, *_OPTIONAL_DATA_SETS) if fields[name] is not None}
    values = {name: value for name, value in fields.items() if name not in (*_DATA_SETS, *_OPTIONAL_DATA_SETS)}
    with atomic_hdf5(path) as file:
        for name, value in data.items():
            file.create_dataset(name, data=value, track_times=False)
        file.attrs.update({**values, "classes": list(slide.classes)})
        file.attrs.update(format=ATTENTION_FORMAT, version=ATTENTION_VERSION)


def read_attention(path: Path) -> SlideAttention:
    """Raises SlideError if the file is missing, unreadable or of another version."""
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            check_format(attributes, ATTENTION_FORMAT, ATTENTION_VERSION, path)
            data = {name: file[name][:] for name in _DATA_SETS}
            data |= {name: file[name][:] for name in _OPTIONAL_DATA_SETS if name in file}
    except FileNotFoundError:
        raise SlideError(f"{path}: no attention for this slide; the run did not test it") from None
    except (OSError, KeyError) as error:
        raise SlideError(f"{path}: not a readable attention file ({error}); train again") from error
    values = {key: _plain(value) for key, value in attributes.items() if key not in ("format", "version")}
    return SlideAttention(**{**values, "classes": tuple(map(str, values["classes"]))}, **data)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _read_csv(path: Path) -> pd.DataFrame:
    """Ids and labels as text: a slide named 007 stays 007, a label NA stays NA."""
    text = ("slide_id", "patient_id", "label", "prediction", "split")
    return pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False)

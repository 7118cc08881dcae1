"""CONTRACT run directory, what train-mil writes. Version 6.

    config.yaml                        settings and inputs, usable as `train-mil --config`
    provenance.json                    what the run was made from
    splits.csv                         repeat, fold, slide_id, patient_id, split (train, val or test), inner (which of
                                       the fold's models a training slide is held out of, from 0; empty without)
    fold-<k>/checkpoint.safetensors    the kept epoch's weights; k counts the folds of all repeats, from 0
    fold-<k>/history.csv               member (from 0; absent where the fold has one model), head (absent where all
                                       have the same), epoch, learning_rate, train_loss, val_loss, val_auroc (for
                                       another task the figure that it watches), stop_loss, worst_step (slides of the
                                       step with the highest loss, parted by spaces; absent for heads without steps)
    predictions.csv                    slide_id, patient_id, repeat, fold, label, prediction, prob_<class>…
    fold-<k>/slide-alone/              both files of the model that is told of no columns, where the run is told of some
    predictions_patient.csv            patient_id, repeat, fold, slides, label, prediction, prob_<class>…
    predictions_slide_alone.csv and predictions_columns_alone.csv
                                       slide_id, patient_id, repeat, fold, label, prob_<class>… by a part of what the
                                       models are told, where they are told of columns
    attention/<slide_id>.h5            attention (N,) float32; patch_logits (N, C) float32, NaN where the head says
                                       nothing of a single patch (bag-stats); coords (N, 2) int64;
                                       class_attention, contributions (N, C) float32 where the head has them
    failures.csv                       slide_id, reason of labelled slides that are not used; absent if all are
    training.safetensors               the distribution of the training slides' mean embeddings, their fingerprints
    metrics.json                       slide, patient, folds, against_mean, counts (patch too for patch-label-copy;
                                       heads, the weight of each, for auto)
    pictures/thumbnails/<slide_id>.jpg and pictures/patches/<slide_id>.jpg
                                       the slide with its most weighty patches outlined, and these patches, for those
                                       slides whose patch store was found
    report.html                        all of this on one page that loads from disk alone
    charts/<name>.png and .pdf         its charts as files: roc, precision-recall, calibration, learning-fold-<k>
    tensorboard/fold-<k>/ and fold-<k>-member-<m>/
                                       events for TensorBoard, of a fold's first and further models
    wandb/                             local files of Weights & Biases, if tracked there

Every file but those of TensorBoard and Weights & Biases MUST be written whole or not at all; a fold folder is one unit.
`provenance.json` MUST be written first and MUST hold `format`, `version`, target, classes (sorted), the positive
class (null unless there are two), the head, how the features were made and at how many µm per pixel, digests of
features and labels, the ids of labelled slides that are left out, the settings, the kind of device and the package
versions; it MUST NOT hold a time or a path, so that the same request gives the same bytes. A reader MUST refuse another
format or version. `metrics.json` MUST be written last: a run is complete if and only if it exists; only `failures.csv`,
`pictures`, `charts` and `report.html`, which are made from complete runs and can be made again at any time, come after
it. A finished fold MUST NOT be written again. Models that are trained together are written when all of them have ended,
so a group of them that is killed starts again, from its first epoch. All other files, those of TensorBoard and Weights
& Biases excepted, MUST be the same bytes when the same request is run again on the same machine, stopped in between or
not.

The kept epoch is that with the lowest `stop_loss`, which is empty where an epoch comes too early to be kept, or the
last one where there is no validation part. A fold of several members has one history after the other; its model is
their mean: of logits, attention and what is said of patches. Predictions MUST be out of fold: from models that saw
neither the slide nor its patient. `prob_<class>` sums to 1 over the classes; it is calibrated: the logits are divided
by the fold's temperature, then its bias is added. For two classes a slide is predicted positive where its probability
reaches the threshold, the share of positive slides in training; else the most probable class is predicted. In
`predictions_patient.csv` the label is empty if a patient's slides carry different labels.

A checkpoint's metadata is one JSON text under the key `slidemil` (safetensors keeps no order of keys): head, shape,
members (their heads), weights (of each head, where several are weighed), classes, positive, threshold (null unless
there are two classes), temperature, bias and shares (of the classes in training, both (C,)). The threshold is one of
calibrated probabilities. Its tensors include `mean` and `std`, with which features are standardised. Where there are
several members, the names of the tensors of member m begin with `members.<m>.`; `weights` (M,) and `offset` (C,) say
what is summed.

`metrics.json`: `slide` and `patient` hold {value, low, high} for each figure of mil.metrics.classification, or one of
these for each class; low and high are the ends of the 95 % interval over patients, given the models of the folds as
they are (predictions are drawn again by patient, no model is trained again); `auroc` is pooled over folds,
`auroc_of_folds` the mean of the folds' own, where there are several. `folds` is a list of the overall figures
of each repeat and fold; `against_mean` says how the slides' AUROC differs from that of mil.evaluation.baseline on the
same folds (value, low, high, p, p_delong) and the baseline's own (`auroc`).

A run whose models are told of columns of the slide table (--covariates) has `covariates` in provenance.json: the sorted
categories of each, or `numbers`. `shape.covariates` of a checkpoint counts the numbers that they are turned into, K;
`into` and `shift` among its tensors are their encoding by the training slides of the model (mil.cohort.covariates), and
`weights` (K, C) the term of the logits (mil.heads.with_covariates). `against_slide` and `against_columns` of
`metrics.json` are like `against_mean`, against models of the same kind that are told of no columns, and against the
plain model of the columns alone.

`training.safetensors` holds the fields of mil.run.novelty.TrainingSlides, and under the metadata key `slidemil` the
known slide fingerprints by slide id.

What depends on the kind of target is the task's own (mil.tasks.task) and is described here for classification: classes
and positive in provenance, checkpoints and attention files; threshold, temperature, bias and shares in checkpoints;
`prob_<class>` in tables; the figures. Any other kind MUST be named under the key `task` in provenance, checkpoints and
attention files; a file that names none is a classification's. A regression has `column` in provenance, checkpoints and
attention files; mean, deviation and half_width (null where there is no range) in checkpoints; `value`, `low` and `high`
in tables, the last two empty where there is no range; the figures of mil.metrics.regression; charts scatter and errors.
Survival has `column`, `event` and `times` there, and `entry` where patients came under observation at times of their
own; slope, centre and hazards in checkpoints; labels such as `12.5`, or `12.5+` where no event was seen by then, with a
time of entry `(3,12.5]` and `(3,12.5+]`; `risk` and `survival_<time>` in tables; the figures of mil.metrics.survival;
charts kaplan-meier, auc-over-time, brier and calibration. Ordinal has `grades` there; temperature and bias in
checkpoints; `above_<grade>` in tables, the probability to be above each grade but the highest; the figures of
mil.metrics.ordinal. Several targets have `targets`, and for each the number of its classes (`sizes`), its classes one
after the other, and its positive one (or empty), there; `calibrations`, one a target, in checkpoints. Outputs are
`<target>=<class>`, and labels and predictions name one of each target, parted by `; `, labels only those that there
are. What tables and figures say of one target begins with its name and a space: `<target> label` (may be empty),
`<target> prediction`, `<target> prob_<class>`, `<target> auroc`; `auroc` alone is the mean over targets. `found` and
`against_mean.targets` are by target; names of charts begin with the target's place and name.

With `settings.bag` patient in provenance all slides of a patient are one bag, with one label; otherwise, and in
versions 1 to 4, each slide is one. What is said of a slide above then holds for a patient: `predictions.csv` has
patient_id and slide_ids (parted by `|`) in the place of slide_id and patient_id, `slide` in metrics.json is null,
`worst_step` names patients, and training.safetensors describes mean embeddings of patients. `splits.csv` and
`attention` stay by slide.

Versions 1 to 5 can still be read. Version 5 had no `targets` in a checkpoint's shape, the number of classes of each of
several targets: they shared one attention. Versions 1 to 3 differ more: they had one model a fold, 1 and 2 no bias (it
was 0) and no shares, version 1 no temperature (it was 1), no training.safetensors, and fewer figures.

An attention file is the mean over the repeats that tested the slide. `attention` is >= 0 and sums to 1 over the bag:
where this is a patient, named by `patient_id`, the slide's sum is its share of the patient's attention, and `bag` the
ids of all its slides; else both are empty, as in attention files of version 1. Where the head has them there are
`class_attention` (N, C), of which each column sums to 1 over the bag (`attention` is then that of the class predicted),
and `contributions` (N, C), which sum to the bag's logits before the bias and what columns add; they and `patch_logits`
are divided by the temperature (not in runs of versions 1 to 3). `coords` are level-0 (x, y) of the patches' top-left
corners, row for row those of the feature file. Attributes: format, version and the fields of `SlideAttention` that are
not data sets; what features of another tool did not say is 0 (sizes), -1 (the overlap) or NaN (the scale).
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tiling.jobs.atomic import write_json, write_text
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.provenance import check_format

FORMAT, VERSION = "slidemil-run", 6
_STILL_READ = (1, 2, 3, 4, 5)
LOCK = "train"  # train.lock is held while the run is written
METADATA = "slidemil"
_FILES = (
    *("config.yaml", "provenance.json", "splits.csv", "predictions.csv", "predictions_patient.csv"),
    *("predictions_slide_alone.csv", "predictions_columns_alone.csv", "training.safetensors", "report.html"),
    *("curves.png", "roc.png"),  # of earlier releases, in the place of charts
)
_FOLDERS = ("attention", "pictures", "charts", "tensorboard", "wandb")
PICTURES = ("thumbnails", "patches")


def is_complete(run: Path) -> bool:
    return (run / "metrics.json").exists()


def picture_path(run: Path, kind: str, slide_id: str) -> Path:
    """kind: one of PICTURES."""
    return run / "pictures" / kind / f"{slide_id}.jpg"


def pictured_slides(run: Path) -> set[str]:
    """Ids of the slides that have all PICTURES."""
    return set.intersection(*({path.stem for path in (run / "pictures" / kind).glob("*.jpg")} for kind in PICTURES))


def chart_path(run: Path, name: str) -> Path:
    """Without its ending."""
    return run / "charts" / name


def tensorboard_folder(run: Path, number: int, member: int) -> Path:
    return run / "tensorboard" / (f"fold-{number}" + (f"-member-{member}" if member else ""))


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
    for folder in ("", "attention/", "charts/", "pictures/*/"):
        for path in run.glob(f"{folder}.*.tmp-*"):
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
        check_format(values, FORMAT, VERSION, path, still_read=_STILL_READ)
    except (ValueError, AttributeError) as error:
        raise RequestError(f"{path}: not JSON of a run ({error}); copy the run again, or train it again") from error
    except SlideError as error:  # names the file
        raise RequestError(f"not a run directory that can be read: {error}") from error
    return {key: value for key, value in values.items() if key not in ("format", "version")}


def bags_of(run: Path) -> str:
    """What is a bag in a finished run: slide or patient."""
    return str(require_complete(run)["settings"].get("bag", "slide"))


def require_complete(run: Path) -> dict[str, Any]:
    """The provenance of a finished run. RequestError if `run` is none."""
    provenance = read_provenance(run)
    if provenance is None:
        raise RequestError(f"{run}: no run directory (provenance.json is missing); train one with train-mil")
    if not is_complete(run):
        raise RequestError(f"{run}: this run is not finished; run the same train-mil command again to go on")
    return provenance

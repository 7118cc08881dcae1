"""train-mil: cohort -> folds -> checkpoints -> out-of-fold predictions -> metrics, in one run directory.

Finished folds are kept when the command is killed. The same command goes on with the first group of models that was
not finished and ends with the same bytes (TensorBoard's events excepted, which hold times).
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from features.device import pick_device
from mil.cohort.cohort import Cohort, load_cohort, shown
from mil.cohort.leakage import audit
from mil.cohort.splits import Fold, make_folds
from mil.evaluation.compare import compare_runs, require_comparable
from mil.evaluation.out_of_fold import evaluate_run
from mil.metrics.bootstrap import Bootstrap
from mil.report.pictures import write_pictures
from mil.report.plots import plot_curves, plot_roc
from mil.report.report import write_report
from mil.run.checkpoint import Checkpoint, fold_numbers, write_fold
from mil.run.layout import (
    LOCK,
    clear,
    clear_temporaries,
    is_complete,
    read_provenance,
    tensorboard_folder,
    write_config,
    write_provenance,
)
from mil.run.tables import read_history, read_metrics, read_predictions, write_failures, write_splits
from mil.training.config import TrainConfig
from mil.training.display import Display, difference_line, plain_console
from mil.training.plan import Plan, plan_training
from mil.training.tracking import Tracker, tracking
from mil.training.trainer import Epoch, train_folds
from tiling.jobs.errors import RequestError
from tiling.jobs.locks import Locked, lock
from tiling.jobs.provenance import differences, package_versions

# Below, threads gain nothing and wait for each other: on a busy machine a step was seen to take 90 times as long.
_PATCHES_WORTH_THREADS = 1000
_ELSEWHERE = ("device", "positive", "track", "memory", "scratch")  # settings noted elsewhere, or without a say
_PACKAGES = ("slidemil", "numpy", "torch")  # with scikit-learn, those that decide about the numbers


def train_mil(
    features: Path,
    labels: Path,
    target: str,
    out: Path,
    config: TrainConfig,
    overwrite: bool = False,
    console: Console | None = None,
    compare: Path | None = None,
    patches: Path | None = None,
) -> int:
    """Train, evaluate and write the run directory `out`; returns the exit code, 1 if a feature file is damaged.

    compare: another run on the same slides, whose AUROC is compared with this one's in the output.
    patches: folder of patch stores, for the report's pictures; by default `patches` beside the features.

    Raises RequestError before any training if the request cannot be met. Sets torch to deterministic algorithms.
    """
    console = console or plain_console()
    device = pick_device(config.device)
    bootstrap = Bootstrap(config.bootstrap, config.seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    _require_free(out)
    if patches is not None and not patches.is_dir():
        raise RequestError(f"{patches}: no such folder; --patches names the one that tile-slides wrote")
    scratch = Path(config.scratch) if config.scratch else out.absolute().parent
    cohort = load_cohort(features, labels, target, config.positive, config.memory, scratch)
    folds, noticed = _audited_folds(cohort, config)
    if compare:
        noticed += require_comparable(compare, cohort, folds)
    if np.median([len(f) for f in cohort.features]) * config.batch_slides < _PATCHES_WORTH_THREADS:
        torch.set_num_threads(1)
    provenance = _provenance(cohort, target, config, device)
    display = Display(console, folds, config.epochs)
    display.cohort(cohort, target, config.head, device, noticed)
    try:
        with lock(out / LOCK):
            if _prepare(out, provenance, overwrite):
                console.print(f"{out} is complete and was made from the same request: nothing to do", soft_wrap=True)
            else:
                settings = {
                    "features": str(features),
                    "labels": str(labels),
                    "target": target,
                    **asdict(config),
                }
                write_config(out, settings)
                write_splits(out, _split_table(cohort, folds))
                with tracking(config.track, out, provenance) as tracker:
                    _train_missing(cohort, folds, config, device, out, display, tracker)
                    evaluate_run(cohort, folds, bootstrap, device, out)
                    plot_curves(out / "curves.png", [read_history(out, fold.number) for fold in folds])
                    plot_roc(out / "roc.png", read_predictions(out), cohort.classes, cohort.positive, bootstrap)
            write_failures(out, cohort.left_out)
            write_pictures(out, patches or features.parent / "patches", _store_digests(cohort), display.note)
            write_report(out)
    except Locked as error:
        raise RequestError(f"another train-mil is working on {out} ({error})") from error
    result = read_metrics(out)
    display.result(out, result, cohort)
    if compare:
        reached = read_metrics(compare)["slide"]["auroc"]["value"]
        found = compare_runs(out, compare, cohort, bootstrap)
        console.print(difference_line(str(compare), reached, vars(found)), soft_wrap=True)
    return 1 if cohort.unreadable else 0


def _audited_folds(cohort: Cohort, config: TrainConfig) -> tuple[list[Fold], list[str]]:
    """All folds, and what the user should know. RequestError with all that was found, before any training."""
    try:
        folds = make_folds(cohort, config.split_plan())
        noticed = [*cohort.warnings, *audit(cohort, folds)]
    except RequestError as error:
        raise RequestError("\n".join([str(error), *(f"warning: {line}" for line in cohort.warnings)])) from error
    used = np.unique(np.concatenate([part for fold in folds for part in (fold.train, fold.val, fold.test)]))
    unused = cohort.slide_ids[np.setdiff1d(np.arange(len(cohort.slide_ids)), used)].tolist()
    return folds, noticed + ([f"slides that are in no fold of {config.splits}, {shown(unused)}"] if unused else [])


def _store_digests(cohort: Cohort) -> dict[str, str]:
    return {info.slide_id: info.store_digest for info in cohort.infos}


def _require_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; --out names a folder")
    if out.is_dir() and not (out / "provenance.json").exists():
        foreign = sorted(p.name for p in out.iterdir() if not p.name.startswith(".") and p.suffix != ".lock")
        if foreign:
            raise RequestError(f"{out} holds other files ({', '.join(foreign[:5])}); choose an empty or new --out")


def _prepare(out: Path, provenance: Mapping[str, Any], overwrite: bool) -> bool:
    """Bring `out` into a state to go on from; True if the run is complete already. The caller holds the lock."""
    clear_temporaries(out)
    if overwrite:
        clear(out)
    found = read_provenance(out)
    if found is None:
        write_provenance(out, provenance)
        return False
    lines = differences(_flat(found), _flat(provenance))
    if lines:
        raise RequestError(
            f"{out} holds a run that was made differently ({'; '.join(lines)}); "
            "choose another --out, or replace it with --overwrite"
        )
    return is_complete(out)


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """{"settings": {"folds": 5}} -> {"settings.folds": 5}."""
    flat: dict[str, Any] = {}
    for key, value in provenance.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _provenance(cohort: Cohort, target: str, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(config).items() if key not in _ELSEWHERE}
    if config.splits:
        settings["splits"] = hashlib.sha256(Path(config.splits).read_bytes()).hexdigest()  # not the path
    versions = package_versions()
    return {
        "target": target,
        "classes": list(cohort.classes),
        "positive": None if cohort.positive is None else cohort.classes[cohort.positive],
        "slides": len(cohort.slide_ids),
        "left_out": sorted(cohort.left_out),  # ids only: the reasons name paths
        "features": {**cohort.encoder, "mpp": cohort.mpp},
        "features_sha256": cohort.features_sha256,
        "labels_sha256": cohort.labels_sha256,
        "settings": settings,
        "device": device.type,
        "packages": {
            **{p: versions[p] for p in _PACKAGES if p in versions},
            "scikit-learn": sklearn.__version__,
        },
    }


def _split_table(cohort: Cohort, folds: Sequence[Fold]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "repeat": fold.repeat,
                "fold": fold.fold,
                "slide_id": cohort.slide_ids[part],
                "patient_id": cohort.patient_ids[part],
                "split": name,
            }
        )
        for fold in folds
        for name, part in (("train", fold.train), ("val", fold.val), ("test", fold.test))
    ]
    return pd.concat(parts, ignore_index=True)


def _train_missing(
    cohort: Cohort,
    folds: Sequence[Fold],
    config: TrainConfig,
    device: torch.device,
    out: Path,
    display: Display,
    tracker: Tracker,
) -> None:
    done = set(fold_numbers(out))
    plan = plan_training(cohort, folds, config, device)
    with display:
        for group in plan.groups:
            for fold in group:
                if fold.number in done:
                    display.fold_skipped(fold)
            if done.issuperset(fold.number for fold in group):
                for fold in group:
                    history = read_history(out, fold.number)[[field.name for field in fields(Epoch)]]
                    for epoch in history.itertuples(index=False):
                        tracker.epoch(fold, Epoch(*epoch))
                continue
            trained = _train_group(cohort, group, config, device, out, display, tracker, plan)
            for fold, (checkpoint, history) in zip(group, trained, strict=True):
                if fold.number not in done:
                    write_fold(out, fold.number, checkpoint, history)
                    display.fold_done(fold, history, checkpoint)


def _train_group(
    cohort: Cohort,
    group: Sequence[Fold],
    config: TrainConfig,
    device: torch.device,
    out: Path,
    display: Display,
    tracker: Tracker,
    plan: Plan,
) -> list[tuple[Checkpoint, pd.DataFrame]]:
    with ExitStack() as open_writers:
        writers = {}
        for fold in group:
            events = tensorboard_folder(out, fold.number)
            shutil.rmtree(events, ignore_errors=True)  # of a group that was killed
            writers[fold.number] = open_writers.enter_context(SummaryWriter(str(events)))

        def on_epoch(fold: Fold, epoch: Epoch) -> None:
            display.epoch(fold, epoch)
            tracker.epoch(fold, epoch)
            for name, value in asdict(epoch).items():
                if np.isfinite(value):
                    writers[fold.number].add_scalar(name, value, epoch.epoch)

        return train_folds(cohort, group, config, device, on_epoch, plan)

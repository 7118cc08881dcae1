"""train-mil: cohort -> folds -> checkpoints -> out-of-fold predictions -> metrics, in one run directory.

Finished folds are kept when the command is killed. The same command goes on with the first group of models that was
not finished and ends with the same bytes (TensorBoard's events excepted, which hold times).
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn

from features.embed.device import pick_device
from mil.cohort.cohort import Cohort, load_cohort, shown
from mil.cohort.constant_features import name_constant_features
from mil.cohort.leakage import audit
from mil.cohort.splits import Fold, make_folds
from mil.evaluation.compare import compare_runs, require_comparable
from mil.evaluation.out_of_fold import evaluate_run
from mil.heads.registry import judges_patches, of_single_rows
from mil.metrics.bootstrap import Bootstrap
from mil.report.pictures import write_pictures
from mil.report.report import write_report
from mil.run.checkpoint import fold_numbers, write_fold
from mil.run.layout import (
    LOCK,
    clear,
    clear_temporaries,
    is_complete,
    read_provenance,
    write_config,
    write_provenance,
)
from mil.run.tables import by_member, read_history, read_metrics, write_failures, write_splits
from mil.tasks.registry import named
from mil.tasks.task import Target, Task
from mil.training.cluster import train_on_cluster
from mil.training.config import TrainConfig
from mil.training.descent import OnEpoch
from mil.training.plan import Plan, plan_training
from mil.training.repeatable import repeatable
from mil.training.tracking import TensorBoard, tracker
from mil.training.trainer import Group, TrainedFolds, train_groups
from mil.training.watch import Session, Watcher, Watchers
from tiling.jobs.errors import RequestError
from tiling.jobs.locks import Locked, lock
from tiling.jobs.provenance import differences, digest, package_versions
from tiling.manifest import load_table
from tiling.objects.copies import copy_objects
from tiling.objects.folder import ObjectFolder, folder_at
from tiling.slide_ids import in_one_form
from tiling.slides.urls import is_url

# Below, threads gain nothing and wait for each other: on a busy machine a step was seen to take 90 times as long.
_PATCHES_WORTH_THREADS = 1000
_OF_THE_CALL = ("overwrite", "compare", "patches", "scheduler", "stage")  # settings that say nothing of the run
_ELSEWHERE = (  # noted elsewhere, or no say
    *_OF_THE_CALL,
    *("device", "task", "positive", "event", "entry", "order", "covariates", "track", "memory", "scratch"),
)
_PACKAGES = ("slidemil", "numpy", "torch")  # with scikit-learn, those that decide about the numbers


@dataclass(frozen=True)
class Trained:
    """What a call of train-mil came to; everything else is in the run directory."""

    out: Path
    task: Task
    was_complete: bool  # of the same request, so that nothing was trained
    unreadable: tuple[str, ...]  # labelled slides whose feature file is damaged
    compared: Mapping[str, Any] | None  # with the run that was asked for, see Task.against


def train_mil(
    features: str | Path,
    labels: Path | pd.DataFrame,
    target: str,
    out: Path,
    config: TrainConfig,
    watcher: Watcher | None = None,
) -> Trained:
    """Train, evaluate and write the run directory `out`, or finish one that the same request began.

    features: folder of feature files, or its address in an object store. labels: slide table, a file or its columns.
    target: its column, or several parted by commas.
    RequestError before any training if the request cannot be met. Torch's modes, threads and random state are the
    caller's again afterwards.
    """
    watcher = watcher or Watcher()
    _require_free(out)
    patches = Path(config.patches) if config.patches else None
    if patches is not None and not patches.is_dir():
        raise RequestError(f"{patches}: no such folder; --patches names the one that tile-slides wrote")
    device = pick_device(config.device)
    scratch = Path(config.scratch) if config.scratch else out.absolute().parent
    features = _at_hand(features, labels, config)
    asked = Target(target, config.positive, config.task, config.event, config.order, config.entry, config.bag)
    told = config.covariate_names()
    cohort = load_cohort(features, labels, asked, config.memory, scratch, told)
    config = _with_loss(config, cohort)
    folds, notices = _audited_folds(cohort, config)
    if config.compare:
        notices += require_comparable(Path(config.compare), cohort, folds)
    memory = "mapped" if config.memory == "auto" else config.memory  # a machine may have several workers
    rows = labels.absolute() if isinstance(labels, Path) else labels
    load = partial(load_cohort, features.absolute(), rows, asked, memory, scratch.absolute(), told)
    session = Session(cohort, folds, target, config, device, out, load)
    watcher.start(session, notices)
    try:
        with lock(out / LOCK), repeatable(_threads(cohort, config)):
            provenance = _provenance(session)
            was_complete = _prepare(out, provenance, config.overwrite)
            if not was_complete:
                settings = {name: value for name, value in asdict(config).items() if name not in _OF_THE_CALL}
                table = str(labels) if isinstance(labels, Path) else ""
                write_config(out, {"features": str(features), "labels": table, "target": target, **settings})
                write_splits(out, _split_table(cohort, folds))
                _train_and_evaluate(session, tracker(config.track, out, provenance), watcher)
            write_failures(out, cohort.left_out, features)
            if judges_patches(config.head):  # else none weighed more than others
                write_pictures(out, patches or features.parent / "patches", _store_digests(cohort), watcher.note)
            write_report(out)
    except Locked as error:
        raise RequestError(f"another train-mil is working on {out} ({error})") from error
    compared = compare_runs(out, Path(config.compare), _bootstrap(config)) if config.compare else None
    return Trained(out, cohort.task, was_complete, cohort.unreadable, compared)


def _at_hand(features: str | Path, labels: Path | pd.DataFrame, config: TrainConfig) -> Path:
    """The folder of feature files, copied from where it lies if that is an object store. RequestError."""
    if not is_url(str(features)):
        return Path(features)
    folder = folder_at(features)
    assert isinstance(folder, ObjectFolder)
    if not config.stage:
        raise RequestError(
            f"{folder}: features are read again and again; give --stage DIR, a folder on a local disk, where those of "
            "the table are copied to once and kept"
        )
    names = {f"{row.slide_id}.h5" for row in load_table(labels, needs_path=False)}
    into = Path(config.stage).absolute() / f"features-{digest(str(folder))[:12]}"
    copy_objects(folder, lambda name: in_one_form(name) in names, into)
    return into


def _with_loss(config: TrainConfig, cohort: Cohort) -> TrainConfig:
    """The config with a loss that the task has."""
    if config.label_smoothing and not cohort.task.smooths_labels:
        raise RequestError(f"label_smoothing spreads labels over classes, and the target is {cohort.task.noun}")
    try:
        return replace(config, loss=config.loss_of(cohort.task.losses))
    except ValueError as error:
        raise RequestError(str(error)) from error


def _threads(cohort: Cohort, config: TrainConfig) -> int | None:
    small = np.median([len(f) for f in cohort.features]) * config.batch_slides < _PATCHES_WORTH_THREADS
    return 1 if small else None


def _bootstrap(config: TrainConfig) -> Bootstrap:
    return Bootstrap(config.bootstrap, config.seed)


def _audited_folds(cohort: Cohort, config: TrainConfig) -> tuple[list[Fold], list[str]]:
    """All folds, and what the user should know. RequestError with all that was found, before any training."""
    try:
        folds = make_folds(cohort, config.split_plan())
        noticed = [*cohort.warnings, *_single_rows(cohort, config.head), *name_constant_features(cohort)]
        noticed += audit(cohort, folds)
    except RequestError as error:
        raise RequestError("\n".join([str(error), *(f"warning: {line}" for line in cohort.warnings)])) from error
    used = np.unique(np.concatenate([part for fold in folds for part in (fold.train, fold.val, fold.test)]))
    unused = cohort.bag_ids[np.setdiff1d(np.arange(len(cohort.bag_ids)), used)].tolist()
    return folds, noticed + (
        [f"{config.bag}s that are in no fold of {config.splits}, {shown(unused)}"] if unused else []
    )


def _single_rows(cohort: Cohort, head: str) -> list[str]:
    """What to know where each bag is one row. RequestError for a head that makes no sense there."""
    if any(len(features) > 1 for features in cohort.features):
        return []
    said = f"each {'patient' if cohort.of_patients else 'slide'} is a single row of features"
    try:
        return [f"{said}: {worth}" for worth in [of_single_rows(head)] if worth]
    except ValueError as error:
        raise RequestError(f"{said}, and {error}") from error


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


def _provenance(session: Session) -> dict[str, Any]:
    cohort, config = session.cohort, session.config
    settings = {key: value for key, value in asdict(config).items() if key not in _ELSEWHERE}
    if config.splits:
        settings["splits"] = hashlib.sha256(Path(config.splits).read_bytes()).hexdigest()  # not the path
    versions = package_versions()
    return {
        "target": session.target,
        **named(cohort.task),
        **cohort.task.provenance(),
        "slides": len(cohort.slide_ids),
        "left_out": sorted(cohort.left_out),  # ids only: the reasons name paths
        "features": {**cohort.encoder, "mpp": cohort.mpp},
        "features_sha256": cohort.features_sha256,
        "labels_sha256": cohort.labels_sha256,
        **({"covariates": cohort.covariates.columns.described()} if cohort.covariates else {}),
        "settings": settings,
        "device": session.device.type,
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
                "slide_id": cohort.slide_ids[cohort.slides_of(part)],
                "patient_id": cohort.patient_ids[cohort.bags_of(cohort.slides_of(part))],
                "split": name,
                "inner": inner,
            }
        )
        for fold in folds
        for name, inner, part in (
            *(("train", str(inner), part) for inner, part in enumerate(fold.inner)),
            *([] if fold.inner else [("train", "", fold.train)]),
            *(("val", "", fold.val), ("test", "", fold.test)),
        )
    ]
    return pd.concat(parts, ignore_index=True)


def _train_and_evaluate(session: Session, tracked: Watcher, watcher: Watcher) -> None:
    """tracked: is told of epochs of earlier calls too."""
    out = session.out
    watchers = Watchers(watcher, tracked, TensorBoard(out))
    try:
        _train_missing(session, tracked, watchers)
        evaluate_run(session.cohort, session.folds, _bootstrap(session.config), session.device, out)
    except BaseException:
        watchers.finish(None)
        raise
    watchers.finish(read_metrics(out))


def _train_missing(session: Session, tracked: Watcher, watchers: Watcher) -> None:
    cohort, out, done = session.cohort, session.out, set(fold_numbers(session.out))
    plan = plan_training(cohort, session.folds, session.config, session.device)
    missing = []
    for group in plan.groups:
        for fold in group:
            if fold.number in done:
                watchers.skipped(fold)
        if done.issuperset(fold.number for fold in group):
            _replay(group, out, tracked)
        else:
            missing.append(group)
    with closing(_trained(session, missing, plan, watchers.epoch)) as ended:
        for folds, trained in ended:
            alone = _trained_alone(session, folds, plan, watchers) if cohort.covariates else [None] * len(folds)
            for fold, (checkpoint, history), other in zip(folds, trained, alone, strict=True):
                if fold.number not in done:
                    write_fold(out, fold.number, checkpoint, history, other)
                    watchers.ended(fold, history, checkpoint)


def _trained(
    session: Session, groups: Sequence[Group], plan: Plan, on_epoch: OnEpoch
) -> Generator[tuple[Group, TrainedFolds], None, None]:
    """Yield each group as it ends. To be closed: others may be in training at the same time."""
    if session.config.scheduler:
        return train_on_cluster(session, groups, plan, on_epoch)
    return train_groups(session.cohort, groups, session.config, session.device, on_epoch, plan)


def _replay(folds: Sequence[Fold], out: Path, tracked: Watcher) -> None:
    """Tell of the epochs of an earlier call."""
    for fold in folds:
        histories = by_member(read_history(out, fold.number).drop(columns="worst_step", errors="ignore"))
        for member, history in enumerate(histories):
            for values in history.to_dict("records"):
                tracked.epoch(replace(fold, member=member), {str(name): value for name, value in values.items()})


def _trained_alone(session: Session, folds: Sequence[Fold], plan: Plan, watcher: Watcher) -> TrainedFolds:
    """The same models without being told of columns, to be compared with; their epochs are not shown."""
    numbers = ", ".join(str(fold.number + 1) for fold in folds)
    watcher.note(f"fold {numbers}: trained again without the columns, to say what they add")
    plan = replace(plan, shape=replace(plan.shape, covariates=0))
    ((_, trained),) = _trained(session, [folds], plan, lambda fold, values: None)
    return trained

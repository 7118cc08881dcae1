"""`report.html` and `charts`: what a run found, how far to trust it and what to look at next.

The page is made of the run directory alone, loads from disk alone (pictures of slides lie beside it) and holds neither
a time nor a path: the same run gives the same bytes. Metrics are taken as they are found in metrics.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mil.metrics.bootstrap import Bootstrap
from mil.pages.page import draw_sections, report_style
from mil.pages.parts import Blocks, Cell, Paragraph, Section, Table, number
from mil.pages.words import counted, difference_sentence, is_figure
from mil.report.covariates import covariates_section
from mil.report.learning import learning_section
from mil.report.slides import slides_section
from mil.run.checkpoint import fold_numbers
from mil.run.layout import chart_path, require_complete
from mil.run.tables import read_failures, read_history, read_metrics, read_predictions
from mil.tasks.registry import restored
from mil.tasks.task import Task
from tiling.jobs.atomic import write_text
from tiling.jobs.outcomes import without_folders
from tiling.jobs.pages import render


def write_report(out: Path) -> None:
    """Write `out/report.html` and its charts as files. RequestError unless `out` is a finished run."""
    provenance = require_complete(out)
    metrics = read_metrics(out)
    sections = _sections(out, provenance, metrics)
    for picture in (picture for section in sections for picture in section.pictures):
        path = chart_path(out, picture.name)
        path.parent.mkdir(exist_ok=True)
        picture.chart.save(path)
    page = render(
        "mil.report",
        "report.html",
        style=report_style(),
        title=f"{provenance['target'].replace(',', ', ')} by {provenance['settings']['head']}",
        facts=_facts(provenance, metrics["counts"]),
        sections=sections,
        body=draw_sections(sections),
    )
    write_text(out / "report.html", page)


def _sections(out: Path, provenance: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Section]:
    task, settings, predictions = restored(provenance), provenance["settings"], read_predictions(out)
    result, *behind = task.sections(metrics, predictions, Bootstrap(settings["bootstrap"], settings["seed"]))
    histories = {n: read_history(out, n) for n in fold_numbers(out)}
    return [
        replace(result, parts=(*result.parts, *_against_baseline(task, metrics))),
        learning_section(histories, settings["epochs"], metrics["counts"]),
        *_covariates(task, provenance, metrics),
        *behind,
        slides_section(out, task, predictions),
        _left_out(read_failures(out)),
        *_by_fold(task, metrics.get("folds")),
        *_heads(metrics.get("heads")),
        _settings(provenance),
    ]


def _against_baseline(task: Task, metrics: Mapping[str, Any]) -> list[Paragraph]:
    """How much better than the plain model on the same folds; none where a run has none."""
    if not (against := metrics.get("against_mean")):
        return []
    title, plain = task.figure_title(task.headline), against[task.headline]["value"]
    return [Paragraph(f"Against a plain model: {difference_sentence(against, title, task.baseline, plain)}.")]


def _facts(provenance: Mapping[str, Any], counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [(f"{counts['slides']:,}", "slides"), (f"{counts['patients']:,}", "patients")]
    facts += restored(provenance).facts(counts)
    facts += [(str(counts["folds"]), "folds")] + ([(str(counts["repeats"]), "repeats")] * (counts["repeats"] > 1))
    return [*facts, (provenance["features"]["encoder"], "features")]


def _left_out(failures: pd.DataFrame) -> Section:
    """failures: slide_id and reason."""
    if not len(failures):
        return Section("Left out", (Paragraph("No labelled slide was left out."),))
    rows = tuple((str(slide), without_folders(reason)) for slide, reason in failures.to_numpy().tolist())
    said = Paragraph(f"No number of this page has them in it: {counted(len(rows), 'labelled slide')}.")
    return Section("Left out", (said, Table(("slide", "why"), rows, last_left=True)))


def _by_fold(task: Task, folds: Sequence[Mapping[str, Any]] | None) -> list[Section]:
    """Every figure by fold, where metrics.json has them."""
    if not isinstance(folds, list) or not folds:
        return []
    names = [name for name, value in folds[0].items() if is_figure(value) and name in task.figure_titles]
    rows: list[tuple[Cell, ...]] = [
        (f"{fold['repeat'] + 1}.{fold['fold'] + 1}", str(fold.get("rows", "")), *(number(fold[name]) for name in names))
        for fold in folds
    ]
    table = Table(("repeat.fold", "slides", *map(task.figure_title, names)), tuple(rows))
    said = Paragraph("This page counts folds from 1; files (fold-<k>) and the flag --fold count from 0.", soft=True)
    return [Section("Folds", (table, said))]


def _covariates(task: Task, provenance: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Section]:
    """Of a run whose models are told of columns."""
    names = list(provenance.get("covariates", ()))
    return [covariates_section(task, names, metrics)] if names else []


def _heads(weights: Mapping[str, float] | None) -> list[Section]:
    """Of a run that weighed several."""
    if not weights:
        return []
    rows = tuple((name, f"{weight:.2f}") for name, weight in weights.items())
    said = Paragraph("The weight of each head's calibrated log-odds, mean over folds; chosen on training slides alone.")
    return [Section("Heads", (said, Table(("head", "weight"), rows)))]


def _settings(provenance: Mapping[str, Any]) -> Section:
    named = {"Settings": "settings", "Features": "features", "Packages": "packages"}
    blocks = {name: provenance[key] for name, key in named.items()}
    blocks["Provenance"] = {k: v for k, v in provenance.items() if k not in (*named.values(), "left_out")}
    shown = tuple((name, tuple((k, _json(v)) for k, v in values.items())) for name, values in blocks.items())
    return Section("Settings", (Blocks(shown),))


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""`report.html`: what a run found, how far to trust it and what to look at next, on one page.

The page is made of the run directory alone, loads from disk alone (pictures of slides lie beside it) and holds neither
a time nor a path: the same run gives the same bytes. Metrics are taken as they are found in metrics.json.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from mil.evaluation.curve_verdict import REMEDIES, Verdict, judge_all, judge_fold
from mil.metrics.bootstrap import Floats
from mil.pages.page import report_style, table
from mil.report.charts import calibration, calibration_bins, learning_curve, loss_axis, precision_recall, roc, scores_of
from mil.run.checkpoint import fold_numbers
from mil.run.layout import PICTURES, picture_path, pictured_slides, require_complete
from mil.run.tables import read_failures, read_history, read_metrics, read_predictions
from tiling.jobs.atomic import write_text
from tiling.qc.page import without_folders

_SMALLEST_PROBABILITY = 1e-7  # below, a loss would be infinite
_FEW_PATIENTS = 20
_METRICS = {
    "auroc": ("AUROC", "chance that a slide of the class gets a higher probability than one without; 0.5 is guessing"),
    "auroc_delong": ("AUROC, DeLong", "the same figure, interval by DeLong's method"),
    "auprc": ("AUPRC", "mean precision over all thresholds; guessing gives the class's share of the slides"),
    "balanced_accuracy": (
        "balanced accuracy",
        "mean of the recalls of all labels; guessing gives one over their number",
    ),
    "sensitivity": ("sensitivity", "part of the slides with the class that are found"),
    "specificity": ("specificity", "part of the slides without the class that are left alone"),
    "accuracy": ("accuracy", "part of all slides that are right; a frequent label makes it high"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "mcc": ("MCC", "correlation of prediction and truth; 0 is guessing, 1 is perfect"),
    "brier": ("Brier score", "mean squared error of the probability; 0 is perfect"),
    "ece": ("calibration error", "how far probabilities are from what comes true, on average; 0 is perfect"),
    "precision": ("precision", ""),
    "recall": ("recall", ""),
}


def write_report(out: Path) -> None:
    """Write `out/report.html`. RequestError unless `out` is a finished run."""
    provenance = require_complete(out)
    metrics, slides = read_metrics(out), read_predictions(out)
    settings = provenance["settings"]
    classes, positive = list(provenance["classes"]), provenance["positive"]
    place = None if positive is None else classes.index(positive)
    scores = scores_of(slides, classes, place, settings["bootstrap"], settings["seed"])
    bins = calibration_bins(scores)
    histories = {n: read_history(out, n) for n in fold_numbers(out)}
    sections = {
        "Result": _headline(metrics, provenance) + _figures(metrics),
        "Learning": _learning(histories, settings["epochs"], metrics["counts"]),
        "Ranking": _figure_row(
            (roc(scores), "ROC", f"{_legend(classes, place)} Dotted: guessing."),
            (
                precision_recall(scores),
                "Precision and recall",
                f"{_legend(classes, place)} Dotted: guessing, the label's share of the slides.",
            ),
        )
        + '<p class="soft">All out-of-fold predictions together; bands hold 95 % of the bootstrap draws over patients.'
        " Folds have models of their own, whose scores may differ in scale, so a pooled curve can be a little worse"
        " than the folds' own.</p>",
        "Labels": _confusion(slides, classes, positive) + _by_class(metrics.get("slide") or {}, classes),
        "Probabilities": _figure_row(
            (calibration(bins, positive or "the predicted label"), "Calibration", _calibration_said(positive))
        ),
        "Slides": _slides(out, slides),
        "Left out": _left_out(out),
        "Folds": _by_fold(metrics.get("folds")),
        "Settings": _settings(provenance),
    }
    write_text(out / "report.html", _page(provenance, metrics, {k: v for k, v in sections.items() if v}))


def _page(provenance: Mapping[str, Any], metrics: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    title = f"{provenance['target']} by {provenance['settings']['head']}"
    body = "".join(f'<section id="{_id(k)}"><h2>{k}</h2>{v}</section>' for k, v in sections.items())
    links = "".join(f'<a href="#{_id(name)}">{name}</a>' for name in sections)
    counts = metrics["counts"]
    of_class = [(f"{count:,}", name) for name, count in counts["slides_of_class"].items()]
    facts = [(f"{counts['slides']:,}", "slides"), (f"{counts['patients']:,}", "patients"), *of_class]
    facts += [(str(counts["folds"]), "folds")] + ([(str(counts["repeats"]), "repeats")] * (counts["repeats"] > 1))
    facts += [(provenance["features"]["encoder"], "features")]
    summary = "".join(f"<li><b>{escape(str(value))}</b> {escape(name)}</li>" for value, name in facts)
    page = resources.files("mil.report").joinpath("report.html").read_text(encoding="utf-8")
    filled = {"STYLE": report_style(), "TITLE": escape(title), "SUMMARY": summary, "LINKS": links, "BODY": body}
    for name, text in filled.items():
        page = page.replace(f"__{name}__", text)
    return page


def _headline(metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The few numbers that matter as cards, and what they say in plain words."""
    slide, positive = metrics["slide"], provenance["positive"]
    names = ("auroc", "balanced_accuracy", "sensitivity", "specificity")
    cards = [(_title(n), slide[n], positive if n != "balanced_accuracy" else None) for n in names if n in slide]
    if "patch" in metrics:
        cards.append(("accuracy on copied patch labels", metrics["patch"]["accuracy"], None))
    shown = "".join(
        f'<div class="number"><span>{escape(title)}</span><b>{_value(figure)}</b><span>{_range(figure)}</span></div>'
        for title, figure, _ in cards
    )
    said = _in_words(slide["auroc"], positive) + _cautions(metrics)
    return f'<div class="numbers">{shown}</div>' + "".join(f"<p>{escape(line)}</p>" for line in said)


def _in_words(auroc: Mapping[str, Any], positive: str | None) -> list[str]:
    if auroc["value"] is None:
        return ["The test slides hold a single label, so nothing can be said about telling labels apart."]
    of = "one label against the rest" if positive is None else f"“{positive}” against the other label"
    lines = [
        f"Take one slide of each kind at random ({of}): the model gives the right one the higher probability in "
        f"{100 * auroc['value']:.0f} of 100 such pairs. Every slide was judged by models that saw neither it nor any "
        "other slide of its patient."
    ]
    low, high = auroc["low"], auroc["high"]
    if low is None:
        return lines
    between = f"With 95 % confidence it is between {100 * low:.0f} and {100 * high:.0f}. "
    if low <= 0.5 <= high:
        return [*lines, between + "That holds 50, which is guessing: this run does not show that the model works."]
    if high < 0.5:
        return [*lines, between + "That is worse than guessing: look for labels or ids that are mixed up."]
    return [*lines, between + "Guessing would be 50."]


def _cautions(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    counts = metrics["counts"]
    if counts["patients"] < _FEW_PATIENTS:
        lines.append(f"Only {counts['patients']} patients: another cohort can give quite another result.")
    figures = [figure for figure in metrics["slide"].values() if _is_figure(figure) and figure["low"] is not None]
    if any(figure["low"] == figure["high"] for figure in figures):
        lines.append("An interval without width means that no error of this kind was seen, not that there is none.")
    if counts["repeats"] > 1:
        lines.append(f"Each slide counts once in each of {counts['repeats']} repeats of the cross-validation.")
    if "patient_reason" in metrics:
        lines.append(f"There are no figures by patient: {metrics['patient_reason']}.")
    return lines


def _figures(metrics: Mapping[str, Any]) -> str:
    """Every overall figure of metrics.json with its interval, by slide and by patient."""
    levels = [(name, metrics[name]) for name in ("slide", "patient") if metrics.get(name)]
    names = [name for name, figure in levels[0][1].items() if _is_figure(figure)]
    names.sort(key=lambda name: [*_METRICS, name].index(name))
    rows = [
        [
            escape(_title(name)),
            *(_cell(level.get(name)) for _, level in levels),
            _small(_METRICS.get(name, ("", ""))[1]),
        ]
        for name in names
    ]
    return table(["", *(f"by {name}, 95 % interval" for name, _ in levels), "<!---->"], rows, last_left=True)


def _learning(histories: Mapping[int, pd.DataFrame], most_epochs: int, counts: Mapping[str, Any]) -> str:
    curves = {
        n: h for n, h in histories.items() if len(h) and np.isfinite(h[["train_loss", "val_loss"]]).all(axis=None)
    }
    if not curves:
        return '<p class="soft">Without epochs, or without a validation part, there are no curves to judge.</p>'
    verdicts = {n: judge_fold(h, most_epochs) for n, h in curves.items()}
    highest, epochs = loss_axis(list(curves.values())), max(int(h["epoch"].iloc[-1]) for h in curves.values())
    charts = [
        f"<figure><figcaption><b>{_fold_name(n, counts)}</b> {_tag(verdicts[n].name)}</figcaption>"
        f"{learning_curve(h, highest, epochs, f'Losses of fold {n}: {verdicts[n].name}')}"
        f"<p>{escape(verdicts[n].said)}</p></figure>"
        for n, h in curves.items()
    ]
    legend = (
        '<p class="soft"><i class="key c0"></i>training <i class="key c1"></i>validation; '
        "the dot is the epoch that was kept, at the lowest mean validation loss of several epochs.</p>"
    )
    return _overall(list(verdicts.values())) + legend + f'<div class="small figures">{"".join(charts)}</div>'


def _overall(verdicts: Sequence[Verdict]) -> str:
    names = [verdict.name for verdict in verdicts]
    most = judge_all(verdicts)
    each = [
        f"<li>{_tag(name)} {names.count(name)} of {len(names)}. {escape(REMEDIES[name])}</li>"
        for name in sorted(set(names), key=lambda name: (-names.count(name), list(REMEDIES).index(name)))
    ]
    return f'<p class="verdict">Overall: {_tag(most)}</p><ul class="plain">{"".join(each)}</ul>'


def _confusion(slides: pd.DataFrame, classes: Sequence[str], positive: str | None) -> str:
    counts = confusion_matrix(slides["label"], slides["prediction"], labels=classes)  # (C, C), truth by prediction
    share: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for i, name in enumerate(classes):
        cells = [
            f'<td class="cell {"right" if i == j else "wrong"}" style="--share:{share[i, j]:.3f}">'
            f"<b>{counts[i, j]}</b> <span>{share[i, j]:.0%}</span></td>"
            for j in range(len(classes))
        ]
        rows.append(f'<tr><th scope="row" class="left">{escape(name)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    threshold = "A slide is called positive from the threshold on that its fold chose on its validation slides."
    decided = "The most probable label is predicted." if positive is None else threshold
    return (
        '<h3>Confusion matrix</h3><div class="sheet fit"><table class="confusion"><thead><tr>'
        f'<th class="left">label ↓ predicted →</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="soft">Slides, and their part of the row. {decided}</p>'
    )


def _by_class(figures: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Every figure of metrics.json that is given by label."""
    names = [name for name, value in figures.items() if isinstance(value, dict) and set(value) == set(classes)]
    if not names:
        return ""
    rows = [[escape(c), *(_cell(figures[name][c]) for name in names)] for c in classes]
    titles = [_title(name.removesuffix("_by_class")) for name in names]
    return "<h3>By label</h3>" + table(["", *map(escape, titles)], rows)


def _slides(out: Path, slides: pd.DataFrame) -> str:
    """One row a slide, the highest loss first."""
    own = np.array([row[f"prob_{row['label']}"] for row in slides.to_dict("records")], np.float64)
    table = slides.assign(
        own=own, loss=-np.log(np.maximum(own, _SMALLEST_PROBABILITY)), wrong=slides["label"] != slides["prediction"]
    )
    grouped = table.groupby("slide_id", sort=True).agg(
        patient=("patient_id", "first"),
        label=("label", "first"),
        prediction=("prediction", lambda names: names.mode().iloc[0]),
        wrong=("wrong", "sum"),
        rows=("wrong", "size"),
        own=("own", "mean"),
        loss=("loss", "mean"),
        folds=("fold", lambda folds: ", ".join(str(f + 1) for f in folds)),
    )
    ordered = grouped.sort_values("loss", ascending=False, kind="stable").to_dict("index")
    pictured = pictured_slides(out)
    rows = "".join(_slide(str(name), row, bool(pictured), str(name) in pictured) for name, row in ordered.items())
    head = (
        '<th class="left">slide</th>'
        + '<th class="left">thumbnail, patches that weighed most</th>' * bool(pictured)
        + '<th class="left">label</th><th class="left">predicted</th><th>probability of its label</th><th>loss</th>'
        '<th class="left">patient</th><th>fold</th>'
    )
    wrong = sum(1 for row in ordered.values() if row["wrong"])
    return (
        f'<p class="soft">The highest loss first: what the model got most wrong, and so where a wrong label or a slide '
        f"unlike the others shows. {_pictures_said(pictured)}</p>"
        '<div class="bar"><input id="text" type="search" placeholder="Filter by slide, patient or label …" '
        'aria-label="Filter slides" autocomplete="off"><button class="chip" id="wrong" aria-pressed="false">wrong'
        f"<span>{wrong}</span></button></div>"
        f'<div class="sheet" tabindex="0" role="region" aria-label="Slides"><table id="slides"><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _slide(name: str, row: Mapping[Any, Any], pictures: bool, has_picture: bool) -> str:
    shown = "".join(
        f'<img loading="lazy" height="76" src="{picture_path(Path(), kind, name).as_posix()}" alt="">'
        for kind in (PICTURES if has_picture else ())
    )
    often = f" in {row['wrong']} of {row['rows']}" if row["rows"] > 1 and row["wrong"] else ""
    said = f'<span class="tag failed">wrong{often}</span>' if row["wrong"] else ""
    return (
        f'<tr{" class=wrong" if row["wrong"] else ""}><th scope="row" class="left">{escape(name)}</th>'
        + (f'<td class="left pictures">{shown}</td>' if pictures else "")
        + f'<td class="left">{escape(row["label"])}</td><td class="left">{escape(row["prediction"])} {said}</td>'
        f"<td>{row['own']:.3f}</td><td>{row['loss']:.3g}</td>"
        f'<td class="left">{escape(row["patient"])}</td><td>{row["folds"]}</td></tr>'
    )


def _pictures_said(pictured: Iterable[str]) -> str:
    if pictured:
        return (
            "Squares on the thumbnail are the patches beside it, the ones with the most attention (where a head weighs "
            "all alike: with the highest score of the predicted label), the highest first."
        )
    return (
        "There are no pictures, since the run did not find the patches: run the same train-mil command again with "
        "--patches and the folder that tile-slides wrote. Nothing is trained again."
    )


def _left_out(out: Path) -> str:
    failures = read_failures(out)
    if not len(failures):
        return "<p>No labelled slide was left out.</p>"
    rows = [[escape(slide), escape(without_folders(reason))] for slide, reason in failures.to_numpy().tolist()]
    return f"<p>{len(rows)} labelled slide(s) are in no number of this page.</p>" + table(
        ["slide", "why"], rows, last_left=True
    )


def _by_fold(folds: Any) -> str:
    """Every figure by fold, where metrics.json has them."""
    if not isinstance(folds, list) or not folds:
        return ""
    names = [name for name, value in folds[0].items() if _is_figure(value)]
    rows = [
        [f"{fold['repeat'] + 1}.{fold['fold'] + 1}", str(fold.get("rows", "")), *(_cell(fold[name]) for name in names)]
        for fold in folds
    ]
    return table(["repeat.fold", "slides", *(escape(_title(name)) for name in names)], rows)


def _settings(provenance: Mapping[str, Any]) -> str:
    parts = [("Settings", provenance["settings"]), ("Features", provenance["features"])]
    parts += [("Packages", provenance["packages"])]
    others = {k: v for k, v in provenance.items() if k not in ("settings", "features", "packages", "left_out")}
    blocks = [f"<h3>{name}</h3>{_list(values)}" for name, values in [*parts, ("Provenance", others)]]
    return f'<div class="blocks">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def _list(values: Mapping[str, Any]) -> str:
    pairs = [
        f"<dt>{escape(k)}</dt><dd>{escape(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False))}</dd>"
        for k, v in values.items()
    ]
    return f"<dl>{''.join(pairs)}</dl>"


def _figure_row(*figures: tuple[str, str, str]) -> str:
    shown = [f"<figure><figcaption><b>{t}</b></figcaption>{chart}<p>{said}</p></figure>" for chart, t, said in figures]
    return f'<div class="figures">{"".join(shown)}</div>'


def _legend(classes: Sequence[str], positive: int | None) -> str:
    if positive is not None:
        return f"Positive: {escape(classes[positive])}."
    return " ".join(f'<i class="key c{c % 6}"></i>{escape(name)}' for c, name in enumerate(classes)) + "."


def _calibration_said(positive: str | None) -> str:
    of = "right" if positive is None else escape(positive)
    return (
        f"On the dotted line, of ten slides with probability 0.8 eight are {of}. Below the line the probabilities are "
        "too high, above it too low. A dot grows with its number of slides; its vertical line is the 95 % interval."
    )


def _is_figure(value: Any) -> bool:
    return isinstance(value, dict) and {"value", "low", "high"} <= set(value)


def _cell(figure: Mapping[str, Any] | None) -> str:
    return "–" if figure is None else f"<b>{_value(figure)}</b> {_small(_range(figure))}"


def _value(figure: Mapping[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{figure['value']:.3f}"


def _range(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "undefined"
    return "" if figure["low"] is None else f"{figure['low']:.3f} – {figure['high']:.3f}"


def _small(text: str) -> str:
    return f'<span class="soft">{escape(text)}</span>' if text else ""


def _tag(name: str) -> str:
    kind = {"fine": "good", "unstable": "failed", "does not learn": "failed"}.get(name, "")
    return f'<span class="tag {kind}">{name}</span>'


def _title(name: str) -> str:
    return _METRICS[name][0] if name in _METRICS else name.replace("_", " ")


def _fold_name(number: int, counts: Mapping[str, Any]) -> str:
    folds = counts["folds"]
    repeat = f"repeat {number // folds + 1}, " if counts["repeats"] > 1 else ""
    return f"{repeat}fold {number % folds + 1}"


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")

"""Heatmaps of a cohort: scores from the run, the picture behind them from the slide, one set of files a slide."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mil.maps import faithfulness, lesions
from mil.maps.config import ENDINGS, HeatmapConfig
from mil.maps.finer import make_finer
from mil.maps.forms import html, ometiff
from mil.maps.forms.csv import score_table
from mil.maps.forms.gallery import write_gallery
from mil.maps.forms.geojson import contours, squares, write_geojson
from mil.maps.forms.png import title, write_png
from mil.maps.scores import PatchScores, default_class, patch_scores
from mil.run.attention import SlideAttention, attention_path, read_attention
from mil.run.layout import require_complete
from mil.run.novelty import read_training_slides
from tiling.jobs.atomic import atomic_file
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.provenance import require_same
from tiling.jobs.slide_loop import run_slides
from tiling.manifest import SlideRow, largest_first
from tiling.slides.files import slide_fingerprint
from tiling.slides.opening import open_slide
from tiling.slides.openslide import bounds_of
from tiling.slides.slide import Slide

if TYPE_CHECKING:
    from mil.maps.judges import SlideModels

VERSION = 2  # of what is drawn; raised when the same input gives another picture


@dataclass(frozen=True)
class _Drawn:
    """All that the forms of one slide are made of."""

    row: SlideRow
    slide: SlideAttention
    scores: PatchScores
    source: Slide
    bounds_l0: tuple[int, int, int, int] | None  # of the scanner, where they are to be the frame
    config: HeatmapConfig
    provenance: dict[str, Any]

    @property
    def origin_l0(self) -> tuple[int, int]:
        return self.bounds_l0[:2] if self.bounds_l0 else (0, 0)


def export_heatmaps(
    run: Path,
    features: Path,
    rows: Sequence[SlideRow],
    config: HeatmapConfig,
    out: Path,
    listener: Listener = SILENT,
) -> Outcomes:
    """Write the chosen forms for every slide. Raises RequestError for an unfinished run or its classes.

    A slide that the run has tested gets its out-of-fold scores; any other gets the folds' ensemble.
    """
    provenance = require_complete(run)
    classes = provenance["classes"]
    if config.class_name and config.class_name not in classes:
        raise RequestError(f"--class-name {config.class_name}: not a class of {run}; expected {', '.join(classes)}")
    known = read_training_slides(run)[1]
    finer = None
    if config.finer > 1:
        finer = make_finer(features, rows, config, out / "finer", listener)
    work = functools.partial(_export, run=run, features=features, finer=finer, config=config, out=out, known=known)
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(rows))
    outcomes = run_slides(largest_first(rows), work, out, Execution(workers), listener)
    if config.faithfulness:
        faithfulness.write_cohort(out, {row.slide_id: row.patient_id for row in rows}, config.score)
    if config.lesions:
        lesions.write_cohort(out, {row.slide_id: row.patient_id for row in rows})
    html.write_index(out)
    return outcomes


def _export(
    row: SlideRow,
    run: Path,
    features: Path,
    finer: Path | None,
    config: HeatmapConfig,
    out: Path,
    known: dict[str, str],
) -> Outcome:
    models = functools.cache(lambda: _models(row, run, features, config))
    path = attention_path(run, row.slide_id)
    slide = read_attention(path) if path.exists() and config.fold < 0 else models().attention("")
    if not (slide.patch_size_l0 and slide.width_l0 and slide.height_l0):
        raise SlideError(
            f"{row.slide_id}: its features did not say how large a patch and the slide are in level-0 pixels, so they "
            "cannot be drawn; convert them with convert-features --to slidemil, and train on the result"
        )
    assert row.path is not None
    fingerprint = slide_fingerprint(row.path)
    expected = known.get(row.slide_id) or (models().embeddings.info.slide_fingerprint if not path.exists() else "")
    source = open_slide(row.path)
    try:
        require_same_slide(row.path, source, slide, fingerprint, expected)
        if finer is not None:  # the decision stays that of the run
            models = functools.cache(lambda: _models(row, run, finer, config))
            slide = replace(models().attention(slide.label), probabilities=slide.probabilities)
        gradient = models().gradients() if config.score == "gradient" else None
        scores = patch_scores(slide, config.score, config.class_name, config.attention_as, gradient)
        drawn = _Drawn(row, slide, scores, source, bounds_of(row.path) if config.qupath_bounds else None, config, {})
        drawn.provenance.update(_provenance(drawn, fingerprint))
        written = [_write(form, drawn, out) for form in config.chosen_formats()]
    finally:
        source.close()
    if config.faithfulness:
        written.append(_measure(drawn, models, out))
    if config.lesions:
        written.append(_measure_lesions(drawn, out))
    if not any(written):
        return Outcome(row.slide_id, "skipped", "already done")
    return Outcome(row.slide_id, "done", patches=len(slide.attention))


def _models(row: SlideRow, run: Path, features: Path, config: HeatmapConfig) -> "SlideModels":
    from mil.maps.judges import slide_models

    return slide_models(run, features, row.slide_id, row.patient_id, config.device, config.fold)


def require_same_slide(path: Path, source: Slide, slide: SlideAttention, found: str, expected: str) -> None:
    if source.level_sizes[0] != (slide.width_l0, slide.height_l0):
        raise SlideError(
            f"{path}: is {source.level_sizes[0]} px, but the features came from a slide of "
            f"{(slide.width_l0, slide.height_l0)} px; is this the same slide?"
        )
    if expected and found != expected:
        raise SlideError(
            f"{path}: is another file than the one that the features of {slide.slide_id} came from (its fingerprint is "
            f"{found[:12]}, expected {expected[:12]}); give the path of the very file that was tiled"
        )


def _provenance(drawn: _Drawn, fingerprint: str) -> dict[str, Any]:
    row, config = drawn.row, drawn.config
    return {
        "version": VERSION,
        "opacity": config.opacity,
        "title": title(drawn.slide),
        "score is": drawn.scores.meaning,
        "fold": config.fold,
        "frame": list(drawn.bounds_l0) if drawn.bounds_l0 else None,
        "scores": hashlib.sha256(drawn.scores.values.tobytes()).hexdigest(),
        "attention": _digest(drawn.slide),
        "slide file": fingerprint,
        "annotation": hashlib.sha256(row.annotation.read_bytes()).hexdigest() if row.annotation else None,
    }


def _write(form: str, drawn: _Drawn, out: Path) -> bool:
    """Write one form; False where the same is there already."""
    path = out / f"{drawn.row.slide_id}{ENDINGS[form]}"
    with lock(path):
        if path.exists() and not drawn.config.overwrite:
            require_same(_read_provenance(form, path, drawn), drawn.provenance, path)
            return False
        _WRITERS[form](path, drawn)
    return True


def _write_csv(path: Path, drawn: _Drawn) -> None:
    with atomic_file(path) as temporary:
        score_table(drawn.slide, drawn.scores).to_csv(temporary, index=False)


_WRITERS: dict[str, Callable[[Path, _Drawn], None]] = {
    "png": lambda path, d: write_png(
        path, d.slide, d.scores, d.source, d.row.annotation, d.config.opacity, d.provenance
    ),
    "geojson": lambda path, d: write_geojson(path, squares(d.slide, d.scores, d.origin_l0), d.provenance),
    "contours": lambda path, d: write_geojson(path, contours(d.slide, d.scores, d.origin_l0), d.provenance),
    "ometiff": lambda path, d: ometiff.write_ometiff(path, d.slide, d.scores, d.provenance, d.bounds_l0),
    "csv": _write_csv,
    "gallery": lambda path, d: write_gallery(path, d.slide, d.scores, d.source, d.provenance),
    "html": lambda path, d: html.write_page(path, d.slide, d.scores, d.source, d.provenance),
}


def _measure(drawn: _Drawn, models: Callable[[], "SlideModels"], out: Path) -> bool:
    """Write how faithful the score is; False where it was measured already, of the same scores."""
    slide_id, digest = drawn.row.slide_id, drawn.provenance["scores"]
    found = faithfulness.read_faithfulness(out / f"{slide_id}.faithfulness.json")
    if found and not drawn.config.overwrite:
        require_same({"scores": found["scores"]}, {"scores": digest}, out / f"{slide_id}.faithfulness.json")
        return False
    of_class = drawn.config.class_name or default_class(drawn.slide)
    judge = models()
    measured = faithfulness.measure(drawn.scores.values, lambda patches: judge.probability(of_class, patches), seed=0)
    faithfulness.write_slide(out, slide_id, drawn.scores.meaning, digest, measured)
    return True


def _measure_lesions(drawn: _Drawn, out: Path) -> bool:
    """A slide of another class than the score's has no lesion; one of this class without polygons is not measured."""
    slide, of_class = drawn.slide, drawn.config.class_name or default_class(drawn.slide)
    if drawn.row.annotation is None and slide.label in ("", of_class):
        return False
    path, digest = out / f"{slide.slide_id}{lesions.ENDING}", drawn.provenance["scores"]
    origin = {"scores": digest, "annotation": drawn.provenance["annotation"]}
    found = lesions.read_measures(path)
    if found and not drawn.config.overwrite:
        require_same({key: found.get(key) for key in origin}, origin, path)
        return False
    lesions.write_slide(out, slide, drawn.scores, drawn.row.annotation, origin)
    return True


def _digest(slide: SlideAttention) -> str:
    sha = hashlib.sha256()
    for values in (slide.attention, slide.patch_logits, slide.coords, slide.probabilities):
        sha.update(values.tobytes())
    sha.update(repr((slide.label, slide.classes, slide.patch_size_l0, slide.mpp_l0)).encode())
    return sha.hexdigest()


def _read_provenance(form: str, path: Path, drawn: _Drawn) -> dict[str, Any]:
    """What an existing heatmap says of its origin; empty if it was not made by this program."""
    try:
        if form in ("png", "gallery"):
            with Image.open(path) as image:
                return dict(json.loads(image.info.get("slidemil", "{}")))
        if form == "ometiff":
            return ometiff.read_provenance(path)
        if form == "html":
            return html.read_provenance(path)
        if form == "csv":  # a table has no place for it: the very same table has the same origin
            same = path.read_text(encoding="utf-8") == score_table(drawn.slide, drawn.scores).to_csv(index=False)
            return drawn.provenance if same else {"scores": "others"}
        return dict(json.loads(path.read_text(encoding="utf-8")).get("slidemil", {}))
    except (OSError, ValueError, AttributeError) as error:
        raise SlideError(f"{path}: exists and cannot be read ({error}); remove it or use --overwrite") from error

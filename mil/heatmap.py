"""Heatmaps of a cohort: scores from the run, the picture behind them from the slide, one set of files a slide."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from features.interop.reader import open_features
from mil.heatmap_config import HeatmapConfig
from mil.heatmap_geojson import write_geojson
from mil.heatmap_png import write_png
from mil.run import SlideAttention, attention_path, describe_attention, read_attention, require_complete
from tiling.artifact import lock, require_same, slide_fingerprint
from tiling.batch import Outcome, run_batch
from tiling.errors import RequestError, SlideError
from tiling.manifest import SlideRow
from tiling.slide import Slide, open_slide

if TYPE_CHECKING:
    from mil.predict import Ensemble

VERSION = 1  # of what is drawn; raised when the same input gives another picture


def export_heatmaps(run: Path, features: Path, rows: Sequence[SlideRow], config: HeatmapConfig, out: Path) -> int:
    """Write the chosen forms for every slide; return the exit code. Raises RequestError for an unfinished run.

    A slide that the run has tested gets its out-of-fold attention; any other gets the folds' ensemble.
    """
    require_complete(run)
    work = functools.partial(_export, run=run, features=features, config=config, out=out)
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(rows))
    return run_batch(rows, work, out=out, verb="export-heatmaps", workers=workers)


def _export(row: SlideRow, run: Path, features: Path, config: HeatmapConfig, out: Path) -> Outcome:
    slide = _attention(run, features, row.slide_id, config.device)
    if not (slide.patch_size_l0 and slide.width_l0 and slide.height_l0):
        raise SlideError(
            f"{row.slide_id}: its features did not say how large a patch and the slide are in level-0 pixels, so they "
            "cannot be drawn; convert them with convert-features --to slidemil, and train on the result"
        )
    assert row.path is not None
    provenance = {
        "version": VERSION,
        "opacity": config.opacity,
        "attention": _digest(slide),
        "slide file": slide_fingerprint(row.path),
        "annotation": hashlib.sha256(row.annotation.read_bytes()).hexdigest() if row.annotation else None,
    }
    opened = open_slide(row.path)
    try:
        if opened.level_sizes[0] != (slide.width_l0, slide.height_l0):
            raise SlideError(
                f"{row.path}: is {opened.level_sizes[0]} px, but the features came from a slide of "
                f"{(slide.width_l0, slide.height_l0)} px; is this the same slide?"
            )
        written = [_write(form, opened, slide, row, config, provenance, out) for form in config.chosen_formats()]
    finally:
        opened.close()
    if not any(written):
        return Outcome(row.slide_id, "skipped", "already done")
    return Outcome(row.slide_id, "done", patches=len(slide.attention))


def _write(
    form: str,
    opened: Slide,
    slide: SlideAttention,
    row: SlideRow,
    config: HeatmapConfig,
    provenance: dict[str, Any],
    out: Path,
) -> bool:
    """Write one form; False where the same is there already."""
    path = out / f"{row.slide_id}.{form}"
    with lock(path):
        if path.exists() and not config.overwrite:
            require_same(_read_provenance(path), provenance, path)
            return False
        if form == "geojson":
            write_geojson(path, slide, provenance)
        else:
            write_png(path, slide, opened, row.annotation, config.opacity, provenance)
    return True


def _attention(run: Path, features: Path, slide_id: str, device: str) -> SlideAttention:
    """Out of fold where the run has tested the slide, else from the folds' ensemble."""
    path = attention_path(run, slide_id)
    if path.exists():
        return read_attention(path)
    try:
        embeddings = open_features(features).read(slide_id)
        ensemble = _ensemble(run, device)
        prediction, info = ensemble.predict(embeddings), embeddings.info
    except RequestError as error:  # of this slide's features or of the device: the slides that were tested go on
        raise SlideError(str(error)) from error
    return describe_attention(
        info,
        embeddings.coords_l0,
        attention=prediction.attention,
        patch_logits=prediction.patch_logits,
        probabilities=prediction.probabilities,
        label="",
        classes=ensemble.classes,
        positive=ensemble.positive,
    )


@functools.cache
def _ensemble(run: Path, device: str) -> "Ensemble":
    from mil.predict import load_ensemble  # torch only where a slide needs it

    return load_ensemble(run, device)


def _digest(slide: SlideAttention) -> str:
    sha = hashlib.sha256()
    for values in (slide.attention, slide.patch_logits, slide.coords, slide.probabilities):
        sha.update(values.tobytes())
    sha.update(repr((slide.label, slide.classes, slide.patch_size_l0, slide.mpp_l0)).encode())
    return sha.hexdigest()


def _read_provenance(path: Path) -> dict[str, Any]:
    """What an existing heatmap says of its origin; empty if it was not made by this program."""
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                return dict(json.loads(image.info.get("slidemil", "{}")))
        return dict(json.loads(path.read_text(encoding="utf-8")).get("slidemil", {}))
    except (OSError, ValueError) as error:
        raise SlideError(f"{path}: exists and cannot be read ({error}); remove it or use --overwrite") from error

"""Heatmaps of a cohort: scores from the run, the picture behind them from the slide, one set of files a slide."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.interop.reader import open_features
from mil.heads.registry import judges_patches
from mil.maps import faithfulness, lesions
from mil.maps.config import HeatmapConfig
from mil.maps.drawn import Drawn
from mil.maps.finer import make_finer
from mil.maps.forms.registry import FORMS, Form, load_form
from mil.maps.index import write_index
from mil.maps.measured import was_measured
from mil.maps.scores import default_class, default_kind, patch_scores, title
from mil.run.attention import SlideAttention, attention_path, read_bag
from mil.run.layout import bags_of, require_complete
from mil.run.novelty import read_training_slides
from mil.run.trained_on import read_trained_on
from mil.tasks.registry import restored
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

VERSION = 3  # of what is drawn; raised when the same input gives another picture


def export_heatmaps(
    run: Path,
    features: Path,
    rows: Sequence[SlideRow],
    config: HeatmapConfig,
    out: Path,
    listener: Listener = SILENT,
) -> Outcomes:
    """Write the chosen forms for every slide. Raises RequestError for an unfinished run, its classes or its head.

    A slide that the run has tested gets its out-of-fold scores; any other gets the folds' ensemble.
    """
    provenance = require_complete(run)
    if not judges_patches(head := provenance["settings"]["head"]):
        raise RequestError(
            f"{run}: the head {head} judges a slide by statistics over all its patches and says nothing of a single "
            "one, so there is no map; train with a head that does, such as --head gated-abmil"
        )
    classes = restored(provenance).output_names
    if config.class_name and config.class_name not in classes:
        raise RequestError(f"--class-name {config.class_name}: not a class of {run}; expected {', '.join(classes)}")
    finer = make_finer(features, rows, config, out / "finer", listener) if config.finer > 1 else None
    work = _Export(run, features, finer, config, out, read_training_slides(run)[1], _bags(run, features, rows))
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(rows))
    execution = Execution(workers, scheduler=config.scheduler, gpu=config.device.startswith("cuda"))
    outcomes = run_slides(largest_first(rows), work, out, execution, listener)
    if config.faithfulness:
        faithfulness.write_cohort(out, {row.slide_id: row.patient_id for row in rows})
    if config.lesions:
        lesions.write_cohort(out, {row.slide_id: row.patient_id for row in rows})
    write_index(out)
    return outcomes


@dataclass(frozen=True)
class _Export:
    """What is done to each slide; goes to the processes of the batch loop."""

    run: Path
    features: Path
    finer: Path | None  # features in smaller steps, which are drawn instead
    config: HeatmapConfig
    out: Path
    known: dict[str, str]  # fingerprints of the slides that the run was trained on
    bags: Mapping[str, Sequence[str]]  # by slide id: all slides of its patient, where these are one bag

    def __call__(self, row: SlideRow) -> Outcome:
        assert row.path is not None
        _require_name_of_its_own(row.slide_id)
        models = functools.cache(lambda: self._models(row, self.features))
        bag, expected = self._stored(row, models)
        fingerprint = slide_fingerprint(row.path)
        with closing(open_slide(row.path)) as source:
            require_same_slide(row.path, source, bag[0], fingerprint, expected)
            if (finer := self.finer) is not None:  # the decision stays that of the run
                models, coarse = functools.cache(lambda: self._models(row, finer)), bag[0]
                bag = [replace(of, probabilities=coarse.probabilities) for of in models().attention(coarse.label)]
            drawn = self._drawn(row, bag, source, models, fingerprint)
            written = [self._write(form, drawn) for form in self.config.chosen_formats()]
        if self.config.faithfulness:
            written.append(self._measure_faithfulness(drawn, models))
        if self.config.lesions:
            written.append(self._measure_lesions(drawn))
        if not any(written):
            return Outcome(row.slide_id, "skipped", "already done")
        return Outcome(row.slide_id, "done", patches=len(bag[0].attention))

    def _models(self, row: SlideRow, features: Path) -> "SlideModels":
        from mil.maps.judges import slide_models  # torch, which stored scores do without

        bag = self.bags.get(row.slide_id, ())
        return slide_models(self.run, features, row, bag, self.config.device, self.config.fold)

    def _stored(self, row: SlideRow, models: Callable[[], "SlideModels"]) -> tuple[list[SlideAttention], str]:
        """What the run saw in the slide and the others of its bag, or sees where that is not stored.

        Then the fingerprint of the slide's file, if known.
        """
        path = attention_path(self.run, row.slide_id)
        stored = path.exists() and self.config.fold < 0
        bag = read_bag(self.run, row.slide_id) if stored else models().attention("")
        slide = bag[0]
        if len(slide.attention) == 1 and not slide.patch_size_l0:
            raise SlideError(
                f"{row.slide_id}: its features are one row, a vector of the whole slide, so there is no map"
            )
        if not (slide.patch_size_l0 and slide.width_l0 and slide.height_l0):
            raise SlideError(
                f"{row.slide_id}: its features did not say how large a patch and the slide are in level-0 pixels, so "
                "they cannot be drawn; convert them with convert-features --to slidemil, and train on the result"
            )
        known = self.known.get(row.slide_id)
        return bag, known or ("" if path.exists() else models().embeddings.info.slide_fingerprint)

    def _drawn(
        self,
        row: SlideRow,
        bag: Sequence[SlideAttention],
        source: Slide,
        models: Callable[[], "SlideModels"],
        fingerprint: str,
    ) -> Drawn:
        config, (slide, *others) = self.config, bag
        assert row.path is not None
        kind = default_kind(slide) if config.score == "auto" else config.score
        gradient = models().gradients() if kind == "gradient" else None
        scores = patch_scores(slide, kind, config.class_name, config.attention_as, gradient, others)
        bounds_l0 = bounds_of(row.path) if config.qupath_bounds else None
        provenance = {
            "version": VERSION,
            "opacity": config.opacity,
            "title": title(slide),
            "score is": scores.meaning,
            "fold": config.fold,
            "frame": list(bounds_l0) if bounds_l0 else None,
            "scores": hashlib.sha256(scores.values.tobytes()).hexdigest(),
            "attention": _digest(slide),
            **({"colours": list(scores.span)} if scores.span else {}),
            "slide file": fingerprint,
            "annotation": hashlib.sha256(row.annotation.read_bytes()).hexdigest() if row.annotation else None,
        }
        return Drawn(row.slide_id, slide, scores, source, provenance, config.opacity, row.annotation, bounds_l0)

    def _write(self, name: str, drawn: Drawn) -> bool:
        """Write one form; False where the same is there already."""
        form = load_form(name)
        path = self.out / f"{drawn.slide_id}{form.ENDING}"
        with lock(path):
            if path.exists() and not self.config.overwrite:
                require_same(_origin(form, path, drawn), drawn.provenance, path)
                return False
            form.write(path, drawn)
        return True

    def _measure_faithfulness(self, drawn: Drawn, models: Callable[[], "SlideModels"]) -> bool:
        """Write how faithful the score is; False where it was measured already, of the same scores."""
        slide_id, digest = drawn.slide_id, drawn.provenance["scores"]
        path = self.out / f"{slide_id}{faithfulness.ENDING}"
        if not self.config.overwrite and was_measured(path, {"scores": digest}):
            return False
        of_class, judge = self._class(drawn), models()
        found = faithfulness.measure(drawn.scores.values, lambda patches: judge.answer(of_class, patches), seed=0)
        faithfulness.write_slide(self.out, slide_id, drawn.scores.meaning, digest, found)
        return True

    def _measure_lesions(self, drawn: Drawn) -> bool:
        """A slide of another class than the score's has no lesion; one of this class needs polygons to be measured."""
        slide = drawn.slide
        of_class = self._class(drawn)
        label = slide.task.label_at(slide.label, slide.classes.index(of_class))
        if drawn.annotation is None and label in ("", of_class):
            return False
        origin = {key: drawn.provenance[key] for key in ("scores", "annotation")}
        path = self.out / f"{slide.slide_id}{lesions.ENDING}"
        if not self.config.overwrite and was_measured(path, origin):
            return False
        lesions.write_slide(self.out, slide, drawn.scores, drawn.annotation, origin)
        return True

    def _class(self, drawn: Drawn) -> str:
        return self.config.class_name or default_class(drawn.slide)


def _bags(run: Path, features: Path, rows: Sequence[SlideRow]) -> dict[str, list[str]]:
    """By slide id: the slides of its patient, as the run knows them, and those rows that have features.

    Empty where slides are bags.
    """
    if bags_of(run) == "slide":
        return {}
    present = open_features(features).paths
    patients = {row.slide_id: row.patient_id for row in rows if row.slide_id in present}
    patients |= read_trained_on(run).patient_of
    slides: dict[str, list[str]] = {}
    for slide_id in sorted(patients):
        slides.setdefault(patients[slide_id], []).append(slide_id)
    return {slide_id: slides[patient] for slide_id, patient in patients.items()}


def _require_name_of_its_own(slide_id: str) -> None:
    """SlideError where `<slide_id>.png` could be what belongs to another slide, as the gallery of `S`."""
    endings = {*(load_form(form).ENDING for form in FORMS), faithfulness.ENDING, faithfulness.PICTURE, lesions.ENDING}
    taken = {ending.rpartition(".")[0] for ending in endings} - {""}
    if slide_id.lower().endswith(tuple(taken)):
        raise SlideError(
            f"{slide_id}: the files of a slide with this id could be those of another; expected an id that does not "
            f"end in {', '.join(sorted(taken))}: rename it in the slide table, and tile and extract it again"
        )


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


def _origin(form: Form, path: Path, drawn: Drawn) -> dict[str, Any]:
    """What an existing heatmap says of its origin. SlideError where it cannot be read."""
    try:
        return form.read_provenance(path, drawn)
    except (OSError, ValueError, AttributeError) as error:
        raise SlideError(f"{path}: exists and cannot be read ({error}); remove it or use --overwrite") from error


def _digest(slide: SlideAttention) -> str:
    sha = hashlib.sha256()
    for values in (slide.attention, slide.patch_logits, slide.coords, slide.probabilities):
        sha.update(values.tobytes())
    sha.update(repr((slide.label, slide.classes, slide.patch_size_l0, slide.mpp_l0)).encode())
    return sha.hexdigest()

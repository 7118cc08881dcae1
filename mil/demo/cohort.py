"""The demo's cohort: phantom slides of patients with one label each, a time to an event, and the slide table."""

import functools
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shapely.geometry import shape

from mil.demo.config import DemoConfig
from tiling.jobs.atomic import write_csv, write_text
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.slide_loop import run_slides
from tiling.phantom.phantom import PhantomSpec, write_phantom

POSITIVE, NEGATIVE = "tumour", "normal"
_MONTHS, _LONGEST = 40.0, 60.0  # of a patient without lesion on average, and that anybody is followed
_STEEPNESS = 3.0  # log hazard of the largest lesion area


@dataclass(frozen=True)
class DemoSlide:
    slide_id: str
    patient_id: str
    spec: PhantomSpec

    @property
    def label(self) -> str:
        return POSITIVE if self.spec.tumour else NEGATIVE


def plan_cohort(config: DemoConfig) -> list[DemoSlide]:
    """Half of the patients have tumour, in all of their slides. The scanner does not depend on the label."""
    rng = np.random.default_rng(config.seed)
    slides = []
    for patient in range(config.patients):
        tumour = patient % 2 == 0
        for number in range(rng.integers(1, 4)):
            spec = PhantomSpec(
                width_px=config.side_px,
                height_px=config.side_px,
                seed=(config.seed + 1) * 100_000 + patient * 10 + number,
                tumour=tumour,
                scanner="A" if rng.random() < 0.5 else "B",
                lesion_fraction=config.lesion_fraction,
            )
            slides.append(DemoSlide(f"p{patient:02d}-s{number + 1}", f"p{patient:02d}", spec))
    return slides


def make_cohort(config: DemoConfig, out: Path, listener: Listener = SILENT) -> tuple[Path, Outcomes]:
    """Write the slides that are missing and the table `slides.csv`; return its path and how the slides ended."""
    slides = plan_cohort(config)
    work = functools.partial(_make_slide, folder=out / "slides")
    workers = config.workers or len(os.sched_getaffinity(0))
    outcomes = run_slides(slides, work, out / "slides", Execution(workers), listener)
    table = [("slide_id", "path", "patient_id", "site", "annotation", "tumour", "months", "died")]
    followed = follow_up({slide: _lesion_area(out / "slides", slide) for slide in slides}, config)
    for slide in slides:
        annotation = f"slides/{slide.slide_id}.lesions.geojson" if slide.spec.tumour else ""
        place = f"slides/{slide.slide_id}.svs"
        scanner = f"scanner {slide.spec.scanner}"
        row = (slide.slide_id, place, slide.patient_id, scanner, annotation, slide.label)
        table.append((*row, *followed[slide.patient_id]))
    write_csv(out / "slides.csv", table)
    return out / "slides.csv", outcomes


def follow_up(areas: Mapping[DemoSlide, float], config: DemoConfig) -> dict[str, tuple[str, str]]:
    """Months, and 1 if the event was seen then, of each patient: its hazard grows with the mean area of its lesions.

    areas: of the lesions of each slide. Drawn again while patients with or without an event are too few for the folds.
    """
    largest = max(areas.values()) or 1.0
    patients = sorted({slide.patient_id for slide in areas})
    own = [[area for slide, area in areas.items() if slide.patient_id == patient] for patient in patients]
    hazard = np.exp(_STEEPNESS * np.array([np.mean(of_patient) for of_patient in own]) / largest)
    for attempt in itertools.count():
        rng = np.random.default_rng((config.seed, attempt))
        died, left = rng.exponential(_MONTHS / hazard), rng.uniform(1, _LONGEST, len(patients))
        seen = died <= left
        if min(seen.sum(), (~seen).sum()) > config.folds:
            break
    months = np.minimum(died, left)
    return {name: (f"{m:.1f}", f"{int(s)}") for name, m, s in zip(patients, months, seen, strict=True)}


def _lesion_area(folder: Path, slide: DemoSlide) -> float:
    """In square level-0 pixels; 0 for a slide that was not made."""
    path = folder / f"{slide.slide_id}.lesions.geojson"
    features = json.loads(path.read_text())["features"] if path.exists() else []
    return float(sum(shape(feature["geometry"]).area for feature in features))


def _make_slide(slide: DemoSlide, folder: Path) -> Outcome:
    path, lesions = folder / f"{slide.slide_id}.svs", folder / f"{slide.slide_id}.lesions.geojson"
    spec = folder / f"{slide.slide_id}.spec.json"
    wanted = json.dumps(vars(slide.spec), sort_keys=True)
    with lock(path):
        if spec.exists() and spec.read_text() == wanted:  # written last, so the slide is whole
            return Outcome(slide.slide_id, "skipped", "already made")
        phantom = write_phantom(slide.spec, path)
        write_text(lesions, json.dumps(phantom.lesion_geojson()))
        write_text(spec, wanted)
    return Outcome(slide.slide_id, "done")

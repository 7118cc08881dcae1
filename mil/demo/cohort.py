"""The demo's cohort: phantom slides of patients with one label each, and the slide table."""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mil.demo.config import DemoConfig
from tiling.jobs.atomic import write_csv, write_text
from tiling.jobs.execution import Execution
from tiling.jobs.listener import SILENT, Listener
from tiling.jobs.locks import lock
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.jobs.slide_loop import run_slides
from tiling.phantom.phantom import PhantomSpec, write_phantom

POSITIVE, NEGATIVE = "tumour", "normal"


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
    table = [("slide_id", "path", "patient_id", "site", "annotation", "tumour")]
    for slide in slides:
        annotation = f"slides/{slide.slide_id}.lesions.geojson" if slide.spec.tumour else ""
        place = f"slides/{slide.slide_id}.svs"
        scanner = f"scanner {slide.spec.scanner}"
        table.append((slide.slide_id, place, slide.patient_id, scanner, annotation, slide.label))
    write_csv(out / "slides.csv", table)
    return out / "slides.csv", outcomes


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

"""The demo's times to an event: one a patient, earlier where lesions are larger, enough of both ends for the folds."""

from dataclasses import replace

import numpy as np

from mil.demo.cohort import follow_up, plan_cohort
from mil.demo.config import DemoConfig


def _areas(config):
    rng = np.random.default_rng(config.seed)
    return {slide: slide.spec.tumour * rng.uniform(0.6, 1.1) for slide in plan_cohort(config)}


def test_the_hazard_follows_the_area_of_the_lesions():
    areas = _areas(DemoConfig(patients=600))
    followed = follow_up(areas, DemoConfig(patients=600))
    tumour = {slide.patient_id for slide in areas if slide.spec.tumour}
    years = {own: sum(float(followed[p][0]) for p in followed if (p in tumour) == own) / 12 for own in (True, False)}
    events = {own: sum(int(followed[p][1]) for p in followed if (p in tumour) == own) for own in (True, False)}
    ratio = events[True] / years[True] / (events[False] / years[False])
    assert 5 < ratio < 20 and followed == follow_up(areas, DemoConfig(patients=600))


def test_the_folds_have_patients_with_and_without_an_event_for_any_seed():
    for seed in range(30):
        config = replace(DemoConfig(patients=20), seed=seed)
        seen = [event for _, event in follow_up(_areas(config), config).values()]
        assert min(seen.count("0"), seen.count("1")) > config.folds

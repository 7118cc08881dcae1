"""Planted cohorts as the findings see them."""

from collections.abc import Callable
from pathlib import Path

import drawn_cohort
import pytest
from planted_cohorts import Plan, planted_inputs

from mil.diagnosis.inputs import Inputs

Build = Callable[..., Inputs]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """build(fault, …) -> Inputs of a planted cohort, see Plan."""

    def make(fault: str = "", **plan: float) -> Inputs:
        return planted_inputs(tmp_path_factory.mktemp(fault or "clean"), Plan(fault, **plan))

    return make


@pytest.fixture(scope="session")
def clean(build: Build) -> Inputs:
    return build()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with patches, features `f` and slides.csv, see drawn_cohort."""
    return drawn_cohort.draw(tmp_path_factory.mktemp("drawn"))

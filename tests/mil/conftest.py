"""Small cohorts of feature files, with a planted signal or none."""

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import planted_cohorts
import pytest
import torch

from mil.pages.chart import Chart
from mil.report.report import write_report
from mil.training import command

_SAVE = Chart.save
torch.set_num_threads(1)  # small matrices; more threads only wait for each other


@pytest.fixture(scope="session", autouse=True)
def undrawn_charts() -> Iterator[None]:
    """Files of charts say what they would show, and so do pages of runs that tests train: drawing took most time."""

    def undrawn(out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Chart, "svg", lambda chart, said: f"<svg>{escape(said)}</svg>")
            write_report(out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chart, "save", _save_undrawn)
        patch.setattr(command, "write_report", undrawn)
        yield


def _save_undrawn(chart: Chart, path: Path) -> None:
    for ending in ("png", "pdf"):
        path.with_name(f"{path.name}.{ending}").write_text(repr(vars(chart)))


@pytest.fixture
def true_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts as users get them."""
    monkeypatch.setattr(Chart, "save", _SAVE)
    monkeypatch.setattr(command, "write_report", write_report)


@pytest.fixture(scope="session")
def write_features() -> Callable[..., None]:
    """write_features(folder, slide_id, features (N, D), **info)."""
    return planted_cohorts.write_features


@pytest.fixture(scope="session")
def make_cohort(write_features: Callable[..., None]) -> Callable[..., Path]:
    """make_cohort(folder, slides, …) -> the label table; features lie beside it, two slides a patient."""

    def make(
        folder: Path,
        slides: int = 24,
        dim: int = 8,
        patches: int = 20,
        positives: int = 2,
        shift: float = 4.0,
        classes: tuple[str, ...] = ("normal", "tumour"),
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for i in range(slides):
            patient = i // 2
            label = patient % len(classes)
            features = rng.normal(size=(patches + i % 3, dim))
            if label:
                features[:positives, label - 1] += shift
            write_features(folder, f"s{i:02d}", rng.permutation(features))
            rows.append((f"s{i:02d}", f"p{patient:02d}", classes[label]))
        table = folder / "labels.csv"
        pd.DataFrame(rows, columns=["slide_id", "patient_id", "diagnosis"]).to_csv(table, index=False)
        return table

    return make


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, make_cohort: Callable[..., Path]) -> Path:
    """Label table of 40 slides where 2 of 20 patches of each positive slide are shifted."""
    return make_cohort(tmp_path_factory.mktemp("planted"), slides=40)

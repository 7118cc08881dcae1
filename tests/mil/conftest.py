"""Small cohorts of feature files, with a planted signal or none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import planted_cohorts
import pytest
import torch

from mil.pages import chart

torch.set_num_threads(1)  # small matrices; more threads only wait for each other
_FONTS, _DPI = chart._STYLE["pdf.fonttype"], chart._FILE_DPI


@pytest.fixture(scope="session", autouse=True)
def quick_charts():
    """Files of charts as they are drawn soonest, since each run writes many."""
    chart._STYLE["pdf.fonttype"], chart._FILE_DPI = 3, 40
    yield
    chart._STYLE["pdf.fonttype"], chart._FILE_DPI = _FONTS, _DPI


@pytest.fixture
def true_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of charts as users get them."""
    monkeypatch.setitem(chart._STYLE, "pdf.fonttype", _FONTS)
    monkeypatch.setattr(chart, "_FILE_DPI", _DPI)


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

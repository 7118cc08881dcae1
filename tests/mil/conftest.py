"""Small cohorts of feature files, with a planted signal or none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from features.feature_file import EmbeddingInfo, Embeddings, write_embeddings

torch.set_num_threads(1)  # small matrices; more threads only wait for each other


@pytest.fixture(scope="session")
def write_features() -> Callable[..., None]:
    """write_features(folder, slide_id, features (N, D), **info)."""

    def write(folder: Path, slide_id: str, features: np.ndarray, **changes: Any) -> None:
        info = {
            **dict(slide_id=slide_id, store_digest=f"store-{slide_id}", encoder="resnet50", weights="default"),
            **dict(weights_sha256="ab" * 32, input_px=224, normalisation="mean=(0.5) std=(0.5)", precision="fp32"),
            **dict(patch_size_px=256, patch_size_l0=512, overlap_px=0, width_l0=8192, height_l0=8192),
            **dict(mpp_l0=0.25, mpp=0.5),
            **changes,
        }
        coords = np.array([(i % 16 * 512, i // 16 * 512) for i in range(len(features))]).reshape(-1, 2)
        embeddings = Embeddings(features.astype(np.float16), coords.astype(np.int64), EmbeddingInfo(**info))
        write_embeddings(folder / f"{slide_id}.h5", embeddings)

    return write


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

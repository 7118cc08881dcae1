"""Cohorts of feature files with a fault planted, or none: test material, no real slides.

A patient has one slide. Patches are normal noise around the slide's own centre and its site's; some patches of tumour
slides show it. Half of the slides are tumour.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from features.feature_file import EmbeddingInfo, Embeddings, write_embeddings
from mil.cohort.cohort import Cohort
from mil.cohort.split_plan import SplitPlan
from mil.cohort.splits import make_folds
from mil.diagnosis.config import DiagnoseConfig
from mil.diagnosis.inputs import Inputs, Sources, load_inputs
from mil.tasks.classification import Classification

CONFIG = DiagnoseConfig(bootstrap=200, permutations=199)
DIM = 12
FAULTS = ("", "permuted", "site", "twice", "flipped")
FLIPPED = 5  # one label in so many


@dataclass(frozen=True)
class Plan:
    """fault: "" none; permuted: labels at random; site: it goes with the label, and nothing else does; twice: two
    slides are there again under other patients; flipped: a fifth of the labels is wrong. witness: share of the patches
    of a tumour slide that show it. spread: deviation of the slides' own centres; 0.1 leaves averaged slides apart, 1 is
    an AUROC of about 0.9. larger: tumour slides have so many times the patches. silent: share of the tumour slides that
    show nothing. shift: by how many deviations of a patch those that show it differ, in two features."""

    fault: str = ""
    slides: int = 64
    patches: int = 30
    witness: float = 0.5
    spread: float = 0.1
    larger: int = 1
    silent: float = 0.0
    shift: float = 3.0
    seed: int = 77  # no threshold was chosen on it

    @property
    def truth(self) -> np.ndarray:
        """(S,) 1 for tumour."""
        return np.arange(self.slides) % 2

    def flipped(self, labels: np.ndarray) -> set[str]:
        """Ids of the slides whose label (S,) is not the truth."""
        return {f"s{i:02d}" for i in np.flatnonzero(labels != self.truth)}


def write_features(folder: Path, slide_id: str, features: np.ndarray, **changes: Any) -> None:
    """A feature file of (N, D); changes are of its EmbeddingInfo."""
    write_embeddings(folder / f"{slide_id}.h5", _embeddings(slide_id, features, **changes))


def _embeddings(slide_id: str, features: np.ndarray, **changes: Any) -> Embeddings:
    info = {
        **dict(slide_id=slide_id, store_digest=f"store-{slide_id}", encoder="resnet50", weights="default"),
        **dict(weights_sha256="ab" * 32, input_px=224, normalisation="mean=(0.5) std=(0.5)", precision="fp32"),
        **dict(patch_size_px=256, patch_size_l0=512, overlap_px=0, width_l0=8192, height_l0=8192),
        **dict(mpp_l0=0.25, mpp=0.5),
        **changes,
    }
    coords = np.array([(i % 16 * 512, i // 16 * 512) for i in range(len(features))]).reshape(-1, 2)
    return Embeddings(features.astype(np.float16), coords.astype(np.int64), EmbeddingInfo(**info))


def plant(folder: Path, plan: Plan) -> Path:
    """Feature files in the folder, and beside them the label table, whose path is returned."""
    bags, table = _drawn(plan)
    for slide_id, bag in zip(table["slide_id"], bags, strict=True):
        write_features(folder, slide_id, bag)
    table.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def planted_inputs(folder: Path, plan: Plan) -> Inputs:
    """What the findings see of such a cohort."""
    return load_inputs(Sources(folder, plant(folder, plan), "diagnosis"), CONFIG)


def inputs_in_memory(plan: Plan) -> Inputs:
    """The same without a file, for hundreds of cohorts."""
    bags, table = _drawn(plan)
    embeddings = [_embeddings(slide_id, bag) for slide_id, bag in zip(table["slide_id"], bags, strict=True)]
    classes = ("normal", "tumour")
    cohort = Cohort(
        slide_ids=table["slide_id"].to_numpy(str),
        patient_ids=table["patient_id"].to_numpy(str),
        task=Classification(classes, 1),
        targets=np.array([classes.index(name) for name in table["diagnosis"]]),
        splits=None,
        sites=table["site"].to_numpy(str),
        features=[torch.from_numpy(of.features) for of in embeddings],
        coords_l0=tuple(of.coords_l0 for of in embeddings),
        infos=tuple(of.info for of in embeddings),
        **dict(features_sha256="", labels_sha256="", warnings=(), left_out={}, unreadable=()),
    )
    folds = make_folds(cohort, SplitPlan(folds=CONFIG.folds, seed=CONFIG.seed))
    return Inputs(Sources(Path("nowhere"), table, "diagnosis"), cohort, tuple(folds), CONFIG)


def _drawn(plan: Plan) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Features of each slide, and the slide table."""
    rng = np.random.default_rng(plan.seed)
    count, truth, label = plan.slides, plan.truth, plan.truth.copy()
    site = rng.permutation(np.arange(count) // 2 % 4) if plan.fault != "site" else truth * 2 + rng.integers(0, 2, count)
    if plan.fault == "flipped":
        wrong = rng.permutation(count)[: count // FLIPPED]
        label[wrong] = 1 - label[wrong]
    if plan.fault == "permuted":
        label = rng.permutation(label)
    bags = _bags(plan, site, rng)
    table = pd.DataFrame({"slide_id": [f"s{i:02d}" for i in range(count)]})
    table["patient_id"] = table["slide_id"].str.replace("s", "p")
    table["diagnosis"] = np.array(["normal", "tumour"])[label]
    table["site"] = np.array(["A", "B", "C", "D"])[site]
    table["scanner"], table["stain"] = rng.choice(["X", "Y"], (2, count))  # several that do not go with the label
    table["jpeg_quality"], table["batch"] = rng.integers(70, 95, count), rng.integers(0, 5, count)
    return bags, table


def _bags(plan: Plan, site: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    tumour = np.flatnonzero(plan.truth)
    silent = set(tumour[: round(plan.silent * len(tumour))].tolist())
    bags = []
    for i in range(plan.slides):
        patches = plan.patches * (plan.larger if plan.truth[i] else 1)
        bag = rng.normal(size=(patches, DIM)) + plan.spread * rng.normal(size=DIM)
        if plan.truth[i] and plan.fault != "site" and i not in silent:
            bag[: round(plan.witness * patches), :2] += plan.shift
        bag[:, 4] += 0.8 * (site[i] % 4)
        bags.append(bag)
    if plan.fault == "twice":
        bags[10], bags[21] = bags[40][::-1], bags[33] + 1e-3
    return bags

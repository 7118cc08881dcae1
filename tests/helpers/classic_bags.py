"""Public sets of bags, and bags of one's own, as cohorts whose bags are patients of their own."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from real_data import DATA

from mil.cohort.cohort import Cohort
from mil.tasks.classification import Classification


def load_bags(name: str) -> Cohort:
    """musk1, fox or a CSV file of the same columns; z-scores, because float16 is short."""
    table = pd.read_csv(name if ".csv" in name else DATA / "mil" / f"{name}.csv.gz")
    columns = [column for column in table.columns if column not in ("bag", "label")]
    scaled = (table[columns] - table[columns].mean()) / (table[columns].std() + 1e-9)
    bags = {bag: (rows["label"].iloc[0], scaled.loc[rows.index]) for bag, rows in table.groupby("bag")}
    labels, features = zip(*bags.values(), strict=True)
    return cohort_of(labels, [x.to_numpy(np.float16) for x in features])


def cohort_of(labels: Sequence[int], features: Sequence[np.ndarray]) -> Cohort:
    ids = np.array([f"bag{i:03d}" for i in range(len(labels))])
    tensors = tuple(torch.from_numpy(x) for x in features)
    return Cohort(
        slide_ids=ids, patient_ids=ids, task=Classification(("0", "1"), 1),
        targets=np.array(labels, dtype=np.int64),
        splits=None, sites=None, features=tensors, coords_l0=(), infos=(), features_sha256="", labels_sha256="",
        warnings=(), left_out={}, unreadable=(),
    )  # fmt: skip

"""Joining features and labels: what is left out is said, what cannot work is refused, before training."""

import numpy as np
import pandas as pd
import pytest
import torch

from mil.cohort.cohort import load_cohort
from mil.tasks.task import Target
from tiling.jobs.errors import RequestError


def _load(table, positive=""):
    return load_cohort(table.parent, table, Target("diagnosis", positive))


def _edit(table, change):
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    change(frame)
    frame.to_csv(table, index=False)


@pytest.fixture
def table(tmp_path, make_cohort):
    return make_cohort(tmp_path / "features", slides=12)


def test_slides_come_in_the_order_of_their_ids(table):
    before = _load(table)
    _edit(table, lambda frame: frame.__setitem__(slice(None), frame[::-1].to_numpy()))
    after = _load(table)
    assert before.slide_ids.tolist() == after.slide_ids.tolist() == sorted(before.slide_ids)
    assert (before.features_sha256, before.labels_sha256) == (after.features_sha256, after.labels_sha256)
    assert before.classes == ("normal", "tumour") and before.positive == 1
    assert before.labels.tolist() == [0, 0, 1, 1] * 3
    assert before.features[3].dtype == torch.float16 and before.warnings == ()


def test_digests_follow_the_data(table, write_features):
    before = _load(table)
    write_features(table.parent, "s03", before.features[3].numpy() + np.float16(0.5))
    changed = _load(table)
    assert changed.features_sha256 != before.features_sha256 and changed.labels_sha256 == before.labels_sha256
    _edit(table, lambda frame: frame.__setitem__("patient_id", frame["slide_id"]))
    assert _load(table).labels_sha256 != before.labels_sha256


def test_what_is_left_out_is_said(table, write_features):
    (table.parent / "s00.h5").unlink()
    (table.parent / "s01.h5").write_bytes(b"not hdf5")
    write_features(table.parent, "s02", np.zeros((0, 8)))
    write_features(table.parent, "other", np.zeros((3, 8)))
    write_features(table.parent, "s04", np.zeros((2, 8)), mpp=1.0)
    cohort = _load(table)
    assert cohort.slide_ids.tolist() == [f"s{i:02d}" for i in range(3, 12)]
    text = "\n".join(cohort.warnings)
    assert "unreadable, left out: " in text and "s01.h5" in text
    assert "labelled slides without a feature file, left out: 1: s00" in text
    assert "slides without any patch, left out: 1: s02" in text
    assert "feature files without a label, ignored: 1" in text
    assert "different scales, from 0.5 to 1 µm per pixel" in text


def test_many_damaged_files_are_a_few_lines(table):
    for file in sorted(table.parent.glob("s*.h5"))[:7]:
        file.write_bytes(b"not hdf5")
    *reasons, others = _load(table).warnings
    assert [reason.split(":")[0] for reason in reasons] == ["unreadable, left out"] * 3
    assert others == "unreadable as well, left out, 4: s03, s04, s05, s06"


def test_all_faults_are_named_at_once(table, write_features):
    write_features(table.parent, "s02", np.zeros((3, 8)), encoder="uni", weights_sha256="cd" * 32)
    write_features(table.parent, "s05", np.zeros((3, 9)), precision="bf16")
    with pytest.raises(RequestError) as caught:
        _load(table, positive="benign")
    message = str(caught.value)
    assert "encoder 'uni' instead of 'resnet50'" in message and "1: s02" in message
    assert "precision 'bf16' instead of 'fp32', dim 9 instead of 8" in message and "1: s05" in message
    assert "--positive 'benign' is not a class of 'diagnosis'; they are normal, tumour" in message


def test_a_positive_class_can_be_chosen(table):
    assert _load(table, positive="normal").positive == 0


def test_three_classes_have_no_positive_one(tmp_path, make_cohort):
    table = make_cohort(tmp_path, slides=12, classes=("a", "b", "c"))
    assert _load(table).positive is None
    with pytest.raises(RequestError, match="--positive is for two classes; 'diagnosis' has 3: a, b, c"):
        _load(table, positive="a")


def test_one_class_cannot_be_trained(table):
    _edit(table, lambda frame: frame.__setitem__("diagnosis", "tumour"))
    with pytest.raises(RequestError, match="all slides with features have diagnosis = 'tumour'"):
        _load(table)


def test_a_split_column_is_filled_or_absent(table):
    _edit(table, lambda frame: frame.__setitem__("split", ["train"] * 11 + [""]))
    with pytest.raises(RequestError, match="'split' is filled for some slides only; fill it for the other 1: s11"):
        _load(table)


def test_the_wrong_folder(table, tmp_path):
    with pytest.raises(RequestError, match="no such folder of feature files"):
        load_cohort(tmp_path / "nowhere", table, "diagnosis")
    with pytest.raises(RequestError, match=r"no slide of .* has features in .*; is it the right folder"):
        load_cohort(tmp_path, table, "diagnosis")


def test_features_beyond_float16_are_not_used(table, tmp_path):
    import h5py

    with h5py.File(table.parent / "s00.h5", "a") as file:
        shape = file["features"].shape
        del file["features"]
        file["features"] = np.full(shape, 1e6, np.float32)
    assert "s00: features hold NaN, infinity or values beyond" in _load(table).warnings[0]

"""A cohort that does not fit in memory is mapped from a scratch file, with the same result, and leaves nothing."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mil.cohort import memory
from mil.cohort.cohort import load_cohort
from mil.cohort.memory import FeatureIntake, MappedFeatures
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError

GB = 1 << 30
RNG = np.random.default_rng(0)
SLIDES = [RNG.normal(size=(n, 7)).astype(np.float16) for n in (3, 1, 500, 20)]


def _taken(memory, folder):
    intake = FeatureIntake(memory, folder)
    for slide in SLIDES:
        intake.add(slide)
    return intake.features(), intake.notice()


@pytest.mark.parametrize("held", [0, 1, 2, 3])  # slides that still fit
def test_what_does_not_fit_is_mapped(tmp_path, monkeypatch, held):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * sum(s.nbytes for s in SLIDES[:held]))
    features, notice = _taken("auto", tmp_path / "new")
    assert isinstance(features, MappedFeatures) and "scratch file" in notice[0]
    assert [f.dtype for f in features] == [torch.float16] * 4
    assert all(np.array_equal(f.numpy(), s) for f, s in zip(features, SLIDES, strict=True))
    assert torch.equal(features[-1], features[3]) and len(features[1:3]) == 2
    assert list((tmp_path / "new").iterdir()) == []  # the file has no name


def test_what_fits_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * sum(s.nbytes for s in SLIDES))
    features, notice = _taken("auto", tmp_path / "never")
    assert isinstance(features, tuple) and notice == [] and not (tmp_path / "never").exists()
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    assert isinstance(_taken("ram", tmp_path)[0], tuple)
    assert isinstance(_taken("mapped", tmp_path)[0], MappedFeatures)


def test_a_tensor_outlives_the_cohort_and_does_not_reach_the_file(tmp_path):
    features, _ = _taken("mapped", tmp_path)
    first = features[0]
    first.zero_()
    assert np.array_equal(features[0].numpy(), SLIDES[0])
    kept = features[2]
    del features
    assert np.array_equal(kept.numpy(), SLIDES[2])


def test_a_run_on_mapped_features_has_the_same_bytes_and_reads_ahead(tmp_path, make_cohort, monkeypatch):
    expected, taken = set(), []
    expect, take = MappedFeatures.expect, MappedFeatures.take
    monkeypatch.setattr(MappedFeatures, "expect", lambda self, i: (expected.add(i), expect(self, i)))
    monkeypatch.setattr(MappedFeatures, "take", lambda self, i: (taken.append(i in expected), take(self, i))[1])
    table = make_cohort(tmp_path / "f", slides=16)
    contents = []
    for place in ("ram", "mapped"):
        out = tmp_path / place
        config = TrainConfig(folds=2, epochs=3, memory=place, bootstrap=100, batch_slides=2)
        assert not train_mil(table.parent, table, "diagnosis", out, config).unreadable
        names = ["predictions.csv", "metrics.json", "provenance.json", "training.safetensors"]
        names += [f"fold-{k}/checkpoint.safetensors" for k in range(2)]
        contents.append([(out / name).read_bytes() for name in names])
    assert contents[0] == contents[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "mapped", "ram"]
    assert any(taken)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, planted):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"file/scratch: no scratch file .* --scratch, or .* --memory ram"):
        load_cohort(planted.parent, planted, "diagnosis", memory="mapped", scratch=tmp_path / "file/scratch")


def test_a_killed_job_leaves_no_scratch_file(tmp_path):
    code = (
        "import os, signal, sys, numpy as np; from pathlib import Path; from mil.cohort.memory import FeatureIntake\n"
        "intake = FeatureIntake('mapped', Path(sys.argv[1])); intake.add(np.ones((1000, 64), np.float16))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(memory.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == -9 and list(tmp_path.iterdir()) == []


def test_moments_of_a_slide(planted, monkeypatch):
    cohort = load_cohort(planted.parent, planted, "diagnosis")
    monkeypatch.setattr("mil.cohort.cohort._BLOCK_ROWS", 7)
    means, squares = replace(cohort).moments
    for i, features in enumerate(cohort.features):
        x = features.double().numpy()
        np.testing.assert_allclose(means[i], x.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(squares[i], x.var(axis=0) * len(x), rtol=1e-12)

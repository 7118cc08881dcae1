"""STAMP 1's files: tiles of a scaled slide, in the two orders in which it wrote x and y."""

from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
from foreign_features import FOREIGN, as_stamp_1, reasons

from features.feature_file import Embeddings, read_embeddings, write_embeddings
from features.interop.description import read_in_place
from features.interop.reader import open_features
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import SlideError

CELLS = np.array([(x, y) for y in range(3) for x in range(4) if (x, y) != (1, 1)])  # of the grid, row by row
FEATURES = np.random.default_rng(0).normal(size=(len(CELLS), 6)).astype(np.float16)
SCALE = ["--patch-px", 224, "--patch-um", 256, "--mpp-l0", 0.25]
REST = ["--width-l0", 9000, "--height-l0", 7000]


@pytest.mark.parametrize("order", ["x first", "y first"])
def test_tiles_lie_where_they_were_cut(convert, tmp_path, order):
    coords = CELLS * 224 if order == "x first" else CELLS[:, ::-1] * 224
    as_stamp_1(tmp_path / "in", "s", FEATURES, coords)
    assert convert(tmp_path / "in", "--to", "slidemil", "--out", tmp_path / "out", *SCALE, *REST) == 0
    found = read_embeddings(tmp_path / "out/s.h5")
    assert np.array_equal(found.coords_l0, CELLS * 1024) and np.array_equal(found.features, FEATURES)
    info = found.info
    assert (info.patch_size_px, info.patch_size_l0, info.overlap_px, info.mpp) == (224, 1024, 0, 256 / 224)
    assert info.encoder == "STAMP-extract-1.0.3_xiyuewang-ctranspath-7c998680"


def test_the_side_of_a_patch_in_level_0_does_as_well(convert, tmp_path):
    as_stamp_1(tmp_path / "in", "s", FEATURES, CELLS * 224)
    flags = ["--patch-px", 224, "--patch-size-l0", 1014, "--mpp-l0", 0.2525]
    assert convert(tmp_path / "in", "--to", "slidemil", "--out", tmp_path / "a", *flags, *REST) == 0
    assert np.array_equal(read_embeddings(tmp_path / "a/s.h5").coords_l0, CELLS * 1014)
    exact = ["--patch-px", 224, "--patch-um", 256, "--mpp-l0", 0.2525]  # does not round the side, so does not drift
    assert convert(tmp_path / "in", "--to", "slidemil", "--out", tmp_path / "b", *exact, *REST) == 0
    assert np.array_equal(read_embeddings(tmp_path / "b/s.h5").coords_l0, np.rint(CELLS * 256 / 0.2525))


def test_what_it_does_not_say_is_asked_for(convert, tmp_path):
    as_stamp_1(tmp_path / "in", "s", FEATURES, CELLS * 224)
    assert convert(tmp_path / "in", "--to", "slidemil", "--out", tmp_path / "out") == 1
    assert (
        "does not say: patch_size_px, patch_size_l0, width_l0, height_l0, mpp_l0; give"
        in reasons(tmp_path / "out")["s"]
    )
    assert convert(tmp_path / "in", "--to", "clam", "--out", tmp_path / "out", "--mpp-l0", 0.25) == 1
    assert "pixels of a scaled slide and it does not say the scale" in reasons(tmp_path / "out")["s"]
    assert convert(tmp_path / "in", "--to", "clam", "--out", tmp_path / "out", "--patch-px", 256, *SCALE[2:]) == 1
    assert "no multiples of 256 px, the side of a patch; they are multiples of 224" in reasons(tmp_path / "out")["s"]


def test_augmented_rows_are_no_patches(tmp_path):
    """With and without coordinates of their own."""
    again = np.repeat([False, True], [len(CELLS), 5])
    features = np.concatenate([FEATURES, FEATURES[:5] + 1])
    for name, coords in (("all", np.concatenate([CELLS, CELLS[:5]])), ("tiles", CELLS)):
        as_stamp_1(tmp_path, name, features, coords * 224, again)
        found = open_features(tmp_path).find(name)
        assert np.array_equal(found.features, FEATURES)
        said = replace(found.said, patch_size_px=224, patch_size_l0=1000)
        assert np.array_equal(read_in_place(replace(found, said=said)).coords_l0, CELLS * 1000)


def test_files_that_cannot_be_told(tmp_path):
    shuffled = np.random.default_rng(1).permutation(len(CELLS))
    row = np.array([(x, 5) for x in range(4)])  # all of one row or of one column: nothing falls
    for name, rows, coords, message in (
        ("shuffled", 11, CELLS[shuffled], "which of `coords` is x cannot be told"),
        ("row", 4, row, "which of `coords` is x cannot be told"),
        ("floats", 11, CELLS / 2, "coords are float64, expected whole pixels"),
        ("lengths", 11, CELLS[:-1], "do not belong together"),
    ):
        as_stamp_1(tmp_path, name, FEATURES[:rows], coords * 224)
        with pytest.raises(SlideError, match=message):
            open_features(tmp_path).find(name)
    as_stamp_1(tmp_path, "flags", FEATURES, CELLS * 224, np.zeros(3, bool))
    with pytest.raises(SlideError, match=r"augmented is bool \(3,\), expected one truth value for each of 11 rows"):
        open_features(tmp_path).find("flags")


@pytest.mark.parametrize("layout", FOREIGN)
def test_on_to_the_others_and_back(convert, tmp_path, layout):
    as_stamp_1(tmp_path / "in", "s", FEATURES, CELLS[:, ::-1] * 224)
    assert convert(tmp_path / "in", "--to", "slidemil", "--out", tmp_path / "ours", *SCALE, *REST) == 0
    assert convert(tmp_path / "in", "--to", layout, "--out", tmp_path / layout, *SCALE, *REST) == 0
    found = open_features(tmp_path / layout).read("s")
    assert np.array_equal(found.coords_l0, CELLS * 1024) and np.array_equal(found.features, FEATURES)
    assert convert(tmp_path / "ours", "--to", layout, "--out", tmp_path / "there") == 0
    assert convert(tmp_path / "there", "--to", "slidemil", "--out", tmp_path / "back") == 0
    assert (tmp_path / "back/s.h5").read_bytes() == (tmp_path / "ours/s.h5").read_bytes()


def test_real_files_convert_and_train(convert, data, tmp_path):
    """Four slides are too few to learn from: only that training runs on them is asked."""
    files = sorted((data / "tcga_crc").glob("*.h5"))
    size = ["--width-l0", 80_000, "--height-l0", 50_000]
    assert convert(data / "tcga_crc", "--to", "slidemil", "--out", tmp_path / "out", *SCALE, *size) == 0
    for file in files:
        found = read_embeddings(tmp_path / "out" / file.name)
        with h5py.File(file) as source:
            assert np.array_equal(found.features, source["feats"])
            row_column = source["coords"][:] // 224  # from cached pictures: rows fall never, columns do
        assert np.array_equal(found.coords_l0, row_column[:, ::-1] * 1024)
        assert (np.diff(found.coords_l0[:, 1]) >= 0).all()
    rows = []
    for i, file in enumerate(files * 2):  # the first half of each slide, then the second, as another patient's
        found = read_embeddings(tmp_path / "out" / file.name)
        half = np.arange(len(found.features)) // (len(found.features) // 2 + 1) == i // 4
        info = replace(found.info, slide_id=f"s{i}", store_digest=f"half {i}")
        write_embeddings(tmp_path / f"cohort/s{i}.h5", Embeddings(found.features[half], found.coords_l0[half], info))
        rows.append((f"s{i}", ("a", "b")[i % 2]))
    pd.DataFrame(rows, columns=["slide_id", "label"]).to_csv(tmp_path / "labels.csv", index=False)
    config = TrainConfig(folds=2, epochs=2, bootstrap=100, device="cpu")
    assert not train_mil(tmp_path / "cohort", tmp_path / "labels.csv", "label", tmp_path / "run", config).unreadable
    assert len(pd.read_csv(tmp_path / "run/predictions.csv")) == 8

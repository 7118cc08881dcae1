"""There and back through every layout: exact values, nothing invented."""

import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
from foreign_features import FOREIGN, INFO, made, ours
from hypothesis import given, settings
from hypothesis import strategies as st

from features.feature_file import Embeddings, write_embeddings
from features.interop.description import ORIGIN, Found, read_in_place
from features.interop.reader import LAYOUTS, open_features
from tiling.jobs.errors import SlideError


@pytest.mark.parametrize("layout", FOREIGN)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_there_and_back_gives_the_same_bytes(convert, tmp_path, layout, dtype):
    for rows in (0, 1, 1500):
        ours(tmp_path / "ours", f"n{rows}", rows=rows, dtype=dtype)
    ours(
        tmp_path / "ours", "unscaled" if layout != "stamp" else "scaled", mpp_l0=math.nan if layout != "stamp" else 1.0
    )
    assert convert(tmp_path / "ours", "--to", layout, "--out", tmp_path / layout) == 0
    assert convert(tmp_path / layout, "--to", "slidemil", "--out", tmp_path / "back") == 0
    files = sorted((tmp_path / "ours").glob("*.h5"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(FOREIGN),
    corners=st.lists(st.tuples(*[st.integers(0, 2**21)] * 2), max_size=20),
    mpp=st.floats(0.05, 20),
    dtype=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 99),
)
def test_any_slide_comes_back(tmp_path_factory, layout, corners, mpp, dtype, seed):
    """Without the attribute that we add, so by what the layout itself can carry and the flags give."""
    coords = np.array(corners, np.int64).reshape(-1, 2)
    features = np.random.default_rng(seed).normal(size=(len(coords), 3)).astype(dtype)
    path = tmp_path_factory.mktemp("slide") / "h5_files" / "s.h5"
    LAYOUTS[layout].write(path, Embeddings(features, coords, replace(INFO, mpp_l0=mpp)))
    with h5py.File(path, "a") as file:
        del file.attrs[ORIGIN]
    found: Found = LAYOUTS[layout].read(path)
    back = read_in_place(replace(found, said=replace(found.said, mpp_l0=mpp)))
    assert np.array_equal(back.coords_l0, coords) and back.coords_l0.dtype == np.int64
    assert np.array_equal(back.features, features)
    assert back.features.dtype == (np.float32 if layout == "clam" else dtype)
    if layout != "clam":
        assert (back.info.encoder, back.info.patch_size_px, back.info.patch_size_l0) == ("resnet18", 256, 507)


@pytest.mark.parametrize(
    ("layout", "largest", "message"),
    [("clam", 2**31 - 1, r"int32"), ("stamp", 2**23 - 2, r"beyond what float32 µm can tell apart")],
)
def test_coordinates_that_a_layout_cannot_hold_are_refused(tmp_path, layout, largest, message):
    info = replace(INFO, mpp_l0=0.25)
    features, coords = np.ones((1, 2), np.float16), np.array([[largest, 7]])
    LAYOUTS[layout].write(tmp_path / "h5_files/s.h5", Embeddings(features, coords, info))
    assert read_in_place(LAYOUTS[layout].read(tmp_path / "h5_files/s.h5")).coords_l0.tolist() == [[largest, 7]]
    with pytest.raises(SlideError, match=message):
        LAYOUTS[layout].write(tmp_path / "no/s.h5", Embeddings(features, coords * 8 + 9, info))
    assert not list(tmp_path.glob("no/*.h5")) + list(tmp_path.glob("pt_files/no*"))


def test_trident_and_our_own_hold_coordinates_beyond_int32(convert, tmp_path):
    embeddings = made(2, width_l0=2**40, height_l0=2**40)
    write_embeddings(tmp_path / "ours/s.h5", replace(embeddings, coords_l0=np.array([[2**31, 5], [2**33 + 1, 6]])))
    assert convert(tmp_path / "ours", "--to", "trident", "--out", tmp_path / "out") == 0
    assert open_features(tmp_path / "out").read("s").coords_l0.tolist() == [[2**31, 5], [2**33 + 1, 6]]


def test_no_path_of_this_machine_is_written(convert, tmp_path):
    ours(tmp_path / "ours", "s")
    for layout in FOREIGN:
        assert convert(tmp_path / "ours", "--to", layout, "--out", tmp_path / layout) == 0
        for file in [*(tmp_path / layout).rglob("*.h5"), *(tmp_path / layout).rglob("*.pt")]:
            assert str(tmp_path).encode() not in file.read_bytes()

"""Fixtures: patches of real tissue, stores made of them, and the command run in this process."""

import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import immunohistochemistry

from features import making
from features.cli import main
from tiling.store.patches import AREA_SCORES, Candidates, MadePatch, PatchStoreInfo, encode, write_store
from tiling.tissue.tissue import TissueMap


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make these tests slow where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def network_drawn_once() -> Iterator[None]:
    """Most tests ask for the same one, and to draw its weights takes longer than to embed some patches."""
    load, loaded = making.load_encoder, functools.cache(making.load_encoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "load_encoder", lambda *of: (loaded if of[:2] == ("resnet18", "random") else load)(*of))
        yield


@pytest.fixture
def tissue():
    """tissue(n, side, seed): n different patches (n, side, side, 3) of a real slide."""

    def cut(n, side, seed=0):
        image = immunohistochemistry()
        corners = np.random.default_rng(seed).integers(0, 512 - side + 1, (n, 2))
        return np.stack([image[y : y + side, x : x + side] for x, y in corners]) if n else image[:0, :side, :side]

    return cut


@pytest.fixture
def make_store():
    """make_store(folder, slide_id, patches): a lossless patch store of these pixels; of their JPEG images if given."""

    def make(
        folder: Path,
        slide_id: str,
        patches: np.ndarray,
        side: int = 64,
        jpegs: list[bytes] | None = None,
        mask: np.ndarray | None = None,
    ) -> Path:
        n = len(patches)
        side = patches.shape[1] if n else side
        info = PatchStoreInfo(
            slide_id=slide_id,
            fingerprint=f"{slide_id}:{patches.sum()}",
            width_l0=5000,
            height_l0=4000,
            mpp_l0=0.25,
            mpp_source="openslide",
            mpp_table=math.nan,
            mpp=0.5,
            patch_size_px=side,
            patch_size_l0=2 * side,
            overlap_px=0,
            level=0,
            backend="openslide",
            config={"pixels": "jpeg" if jpegs else "zstd", "jpeg_quality": 90},
            packages={},
            thumbnail_downsample=64.0,
        )
        tissue = np.ones((63, 79), bool) if mask is None else mask
        coords = np.arange(2 * n, dtype=np.int64).reshape(n, 2) * 2 * side
        write_store(
            folder / f"{slide_id}.zarr",
            info,
            Candidates(coords, {name: np.ones(n, np.float32) for name in AREA_SCORES}),
            TissueMap(tissue, *np.ones((3, *tissue.shape), bool)),
            np.zeros((*tissue.shape, 3), np.uint8),
            (MadePatch(i, 1.0, data) for i, data in enumerate(jpegs or [encode(patch, info) for patch in patches])),
        )
        return folder / f"{slide_id}.zarr"

    return make


@pytest.fixture
def stores(make_store, tissue, tmp_path):
    """A folder with three stores of 9, 4 and 0 patches of 64 px."""
    for name, count in (("a", 9), ("b", 4), ("empty", 0)):
        make_store(tmp_path / "patches", name, tissue(count, 64, seed=count))
    return tmp_path / "patches"


@pytest.fixture
def extract(monkeypatch):
    """extract(PATCHES, "--out", DIR, …) -> exit code; the network is resnet18 with random weights unless told."""

    def run(*arguments: object) -> int:
        given = [str(a) for a in arguments]
        if "--encoder" not in given:
            given += ["--encoder", "resnet18", "--weights", "random"]
        monkeypatch.setattr(sys, "argv", ["extract-features", *given])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run

"""The patch store: read back by ourselves, by zarr alone, and refused when damaged or of another version."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from tiling.config import TilingConfig
from tiling.jobs.errors import SlideError
from tiling.rules import RULES
from tiling.store.patches import AREA_SCORES, Candidates, MadePatch, PatchStore, PatchStoreInfo, encode, write_store
from tiling.store.shards import PATCHES_PER_SHARD
from tiling.tissue.tissue import TissueMap
from tiling.verify import verify_store

GOLDENS = Path(__file__).parents[2] / "golden"
GOLDEN = GOLDENS / "patches-v1.zarr"


def smooth(n, side=32):
    """Patches (n, side, side, 3) without noise, which JPEG keeps nearly as they are."""
    ramp = np.linspace(0, 80, side)
    base = np.arange(n)[:, None, None, None] % 150
    return (base + ramp[:, None, None] + np.zeros((side, 1))[None] + np.array([0, 10, 20])).astype(np.uint8)


def make(path, patches, **settings):
    config = TilingConfig(patch_px=patches.shape[1], **settings)
    n = len(patches)
    info = PatchStoreInfo(
        slide_id="s", fingerprint="f", width_l0=9999, height_l0=8888, mpp_l0=0.25, mpp_source="openslide",
        mpp_table=math.nan, mpp=0.5, patch_size_px=patches.shape[1], patch_size_l0=64, overlap_px=0, level=0,
        backend="openslide", config=config.content(), packages={"slidemil": "0"}, thumbnail_downsample=32.0,
        rules=RULES,
    )  # fmt: skip
    coords = np.stack([np.arange(n) * 64, np.arange(n) * 7], 1).astype(np.int64)
    fraction = np.linspace(0.5, 1, n, dtype=np.float32)
    eye, thumbnail = np.eye(20, 30, dtype=bool), np.full((20, 30, 3), 7, np.uint8)
    areas = {name: fraction / (i + 1) for i, name in enumerate(AREA_SCORES)}
    made = (MadePatch(i, float(i), encode(p, info)) for i, p in enumerate(patches))
    write_store(path, info, Candidates(coords, areas), TissueMap(eye, ~eye, eye, eye), thumbnail, made)
    return coords, fraction


@pytest.mark.parametrize("pixels", ["jpeg", "zstd"])
def test_what_is_written_is_read(tmp_path, pixels):
    patches = smooth(PATCHES_PER_SHARD + 37)
    coords, fraction = make(tmp_path / "s.zarr", patches, pixels=pixels)
    store = PatchStore(str(tmp_path / "s.zarr"))
    assert len(store) == len(patches) and (store.coords_l0 == coords).all()
    assert (store.scores["tissue_fraction"] == fraction).all() and store.scores["sharpness"][5] == 5
    assert store.tissue_mask.dtype == bool and (store.tissue_mask == np.eye(20, 30, dtype=bool)).all()
    assert (store.thumbnail == 7).all() and store.info.thumbnail_downsample == 32
    for start, stop in [(0, 1), (3, 3), (500, 530), (0, len(patches)), (548, 549)]:
        error = np.abs(store.read(range(start, stop)).astype(int) - patches[start:stop])
        assert error.max(initial=0) <= (4 if pixels == "jpeg" else 0)


@pytest.mark.parametrize("pixels", ["jpeg", "zstd"])
def test_zarr_alone_reads_the_same_pixels(tmp_path, pixels):
    """In a process that imports nothing of this project by name: zarr finds the codec by its entry point."""
    make(tmp_path / "s.zarr", smooth(PATCHES_PER_SHARD + 3), pixels=pixels)
    script = (
        "import sys, zarr, numpy as np; g = zarr.open_group(sys.argv[1], mode='r');"
        "np.savez(sys.argv[2], p=g['patches'][:], c=g['coords_l0'][:], few=g['patches'][510:514])"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "s.zarr", tmp_path / "x.npz"], check=True, cwd=tmp_path)
    read, store = np.load(tmp_path / "x.npz"), PatchStore(tmp_path / "s.zarr")
    assert (read["p"] == store.read(range(0, len(store)))).all() and (read["c"] == store.coords_l0).all()
    assert (read["few"] == read["p"][510:514]).all()


def test_zarr_writes_what_we_read(tmp_path):
    patches = smooth(PATCHES_PER_SHARD + 3)
    make(tmp_path / "s.zarr", patches, pixels="zstd")
    other = (patches + 1).astype(np.uint8)
    zarr.open_group(tmp_path / "s.zarr", mode="r+")["patches"][:] = other
    assert (PatchStore(tmp_path / "s.zarr").read(range(0, len(other))) == other).all()


def test_no_patches_is_a_valid_store(tmp_path):
    make(tmp_path / "s.zarr", smooth(0))
    store = PatchStore(tmp_path / "s.zarr")
    assert len(store) == 0 and store.read(range(0, 0)).shape == (0, 32, 32, 3) and store.coords_l0.shape == (0, 2)


def test_reference_stores_hold_coordinates_only(tmp_path):
    make(tmp_path / "s.zarr", smooth(3), pixels="reference")
    store = PatchStore(tmp_path / "s.zarr")
    assert len(store) == 3 and not (tmp_path / "s.zarr" / "patches").exists()
    with pytest.raises(SlideError, match="coordinates only"):
        store.read(range(0, 1))


def test_the_same_input_gives_the_same_bytes_and_the_digest_tells_stores_apart(tmp_path):
    for name in "ab":
        make(tmp_path / f"{name}.zarr", smooth(5))
    files = [
        {p.relative_to(tmp_path / f): p.read_bytes() for p in (tmp_path / f).rglob("*") if p.is_file()}
        for f in ("a.zarr", "b.zarr")
    ]
    assert files[0] == files[1]
    make(tmp_path / "c.zarr", smooth(5), jpeg_quality=80)
    digests = [PatchStore(tmp_path / f"{n}.zarr").digest for n in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_every_flipped_byte_of_the_pixels_is_noticed(tmp_path):
    make(tmp_path / "s.zarr", smooth(3), pixels="zstd")
    shard = tmp_path / "s.zarr/patches/c/0/0/0/0"
    content = shard.read_bytes()
    used = len(content) - PATCHES_PER_SHARD * 16 - 4
    for place in [*range(0, used, 37), used + 1, used + 20, len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        shard.write_bytes(damaged)
        with pytest.raises(SlideError, match="damaged"):
            PatchStore(tmp_path / "s.zarr").read(range(0, 3))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda s: (s / "patches/c/0/0/0/0").unlink(), "missing"),
        (lambda s: (s / "patches/c/0/0/0/0").write_bytes(b"short"), "cut short"),
        (lambda s: shutil.rmtree(s / "coords_l0"), "coords_l0"),
        (lambda s: (s / "zarr.json").write_text("{"), "damaged zarr.json"),
        (lambda s: (s / "zarr.json").unlink(), "no patch store"),
    ],
)
def test_a_damaged_store_is_named_with_the_remedy(tmp_path, harm, said):
    path = tmp_path / "s.zarr"
    make(path, smooth(3))
    harm(path)
    with pytest.raises(SlideError, match=said) as error:
        PatchStore(path).read(range(0, 3))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("version", [1, 2])
def test_the_golden_stores_are_read_for_ever(version):
    store = PatchStore(GOLDENS / f"patches-v{version}.zarr")
    assert store.version == version and store.info.rules == {} and verify_store(store.path) == 3
    assert store.info.slide_id == "s" and store.info.mpp == 0.5 and math.isnan(store.info.mpp_table)
    assert store.coords_l0.tolist() == [[0, 0], [64, 7], [128, 14]]
    assert np.abs(store.read(range(0, 3)).astype(int) - smooth(3)).max() <= 4
    assert store.scores["sharpness"].tolist() == [0, 1, 2]
    assert not store.scores["padded_fraction"].any() and store.info.padding_rgb is None
    assert math.isnan(store.info.tissue_covered)


def test_another_version_is_refused_by_name(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "s.zarr")
    metadata = json.loads((GOLDEN / "zarr.json").read_text())
    metadata["attributes"]["version"] = 4
    (tmp_path / "s.zarr/zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(SlideError, match="slidemil-patches version 4, this program reads version 3"):
        PatchStore(tmp_path / "s.zarr")

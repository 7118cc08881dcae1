"""Features of CLAM, TRIDENT and STAMP: exact values both ways, nothing invented, damage stays alone.

The files of the other tools are written here by their layouts with plain h5py, as their own writers do.
"""

import csv
import json
import math
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from features.feature_file import UNKNOWN, EmbeddingInfo, Embeddings, read_embeddings, write_embeddings
from features.interop.cli import main
from features.interop.config import ConvertConfig
from features.interop.description import ORIGIN, Found, read_in_place
from features.interop.reader import LAYOUTS, open_features
from mil.cohort.cohort import load_cohort
from mil.maps.config import HeatmapConfig
from mil.maps.export import export_heatmaps
from mil.run.predict import predict_folder
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from mil.training.display import Display, plain_console
from tiling.jobs.errors import RequestError, SlideError
from tiling.manifest import SlideRow

FOREIGN = ("clam", "trident", "stamp")
INFO = EmbeddingInfo(
    slide_id="s", store_digest="d" * 64, encoder="resnet18", weights="random (seed 0)", weights_sha256="e" * 64,
    input_px=256, normalisation="mean=(0.5) std=(0.5)", precision="bf16", patch_size_px=256, patch_size_l0=507,
    overlap_px=16, width_l0=90_000, height_l0=70_000, mpp_l0=0.2525, mpp=0.2525 * 507 / 256,
    slide_fingerprint="f" * 64,
)  # fmt: skip


def made(rows=5, dtype=np.float16, dim=4, seed=0, **changes) -> Embeddings:
    rng = np.random.default_rng(seed)
    coords = np.stack([rng.integers(0, 90_000, rows), rng.integers(0, 70_000, rows)], 1).astype(np.int64)
    return Embeddings(rng.normal(size=(rows, dim)).astype(dtype), coords, replace(INFO, **changes))


def ours(folder: Path, slide_id: str, **how) -> Embeddings:
    embeddings = made(slide_id=slide_id, **how)
    write_embeddings(folder / f"{slide_id}.h5", embeddings)
    return embeddings


def as_clam(folder: Path, slide_id: str, features, coords) -> Path:
    (folder / "h5_files").mkdir(parents=True, exist_ok=True)
    (folder / "pt_files").mkdir(exist_ok=True)
    path = folder / "h5_files" / f"{slide_id}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features.astype(np.float32), maxshape=(None, features.shape[1]))
        file.create_dataset("coords", data=coords.astype(np.int32), maxshape=(None, 2))
    torch.save(torch.from_numpy(features.astype(np.float32)), folder / "pt_files" / f"{slide_id}.pt")
    return path


def as_clam_patches(folder: Path, slide_id: str, coords, level=0) -> None:
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / f"{slide_id}.h5", "w") as file:
        file["coords"] = coords
        downsample = 4.0**level
        size = (90_000 // 4**level, 70_000 // 4**level)
        file["coords"].attrs.update(
            patch_size=256, patch_level=level, downsample=(downsample, downsample), downsampled_level_dim=size,
            level_dim=size, name=slide_id, save_path="x",
        )  # fmt: skip


def as_trident(folder: Path, slide_id: str, features, coords) -> Path:
    (folder / "features_uni_v1").mkdir(parents=True, exist_ok=True)
    path = folder / "features_uni_v1" / f"{slide_id}.h5"
    with h5py.File(path, "w") as file:
        for name, data in (("features", features), ("coords", coords.astype(np.int64))):
            file.create_dataset(name, data=data, maxshape=(None, *data.shape[1:]), chunks=(1, *data.shape[1:]))
        file["features"].attrs.update(name=slide_id, savetodir="/home/x", encoder="uni_v1")
        file["coords"].attrs.update(
            patch_size=512, patch_size_level0=1024, level0_magnification=40, target_magnification=20, overlap=0,
            name=slide_id, savetodir="None", level0_width=90_000, level0_height=70_000,
        )  # fmt: skip
    return path


def as_stamp(folder: Path, slide_id: str, features, coords_um) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{slide_id}.h5", "w") as file:
        file["coords"] = coords_um.astype(np.float32)
        file["feats"] = features.astype(np.float16)
        file.attrs.update(
            stamp_version="2.5.0", extractor="uni2", unit="um", tile_size_um=256.0, tile_size_px=224, code_hash="ab",
            feat_type="tile",
        )  # fmt: skip
    return folder / f"{slide_id}.h5"


@pytest.fixture
def convert(monkeypatch):
    """convert(IN, "--to", …) -> exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert-features", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run


def reasons(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open() as file:
        return {row["slide_id"]: row["reason"] for row in csv.DictReader(file)}


def statuses(out: Path) -> dict[str, str]:
    slides = json.loads((out / "summary.json").read_text())["slides"]
    return {name: slide["status"] for name, slide in slides.items()}


# Both ways


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


# What is written, as the other tools read it


def test_what_clam_reads(convert, tmp_path):
    embeddings = ours(tmp_path / "ours", "s")
    assert convert(tmp_path / "ours", "--to", "clam", "--out", tmp_path / "out") == 0
    tensor = torch.load(tmp_path / "out/pt_files/s.pt", weights_only=True)
    assert tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), embeddings.features)
    with h5py.File(tmp_path / "out/h5_files/s.h5") as file:
        assert file["features"].dtype == np.float32 and np.array_equal(file["features"][:], embeddings.features)
        assert file["coords"].dtype == np.int32 and np.array_equal(file["coords"][:], embeddings.coords_l0)


def test_what_trident_reads(convert, tmp_path):
    ours(tmp_path / "ours", "s", patch_size_l0=512, mpp_l0=0.25)
    ours(tmp_path / "ours", "unscaled", mpp_l0=math.nan)
    assert convert(tmp_path / "ours", "--to", "trident", "--out", tmp_path / "out") == 0
    with h5py.File(tmp_path / "out/features_resnet18/s.h5") as file:
        assert dict(file["coords"].attrs) == {
            "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
            "overlap": 16, "name": "s", "savetodir": "features_resnet18", "level0_width": 90_000,
            "level0_height": 70_000,
        }  # fmt: skip
        assert file["features"].attrs["encoder"] == "resnet18" and file["features"].dtype == np.float16
        assert file["coords"].dtype == np.int64
    with h5py.File(tmp_path / "out/features_resnet18/unscaled.h5") as file:
        assert "level0_magnification" not in file["coords"].attrs


def test_what_stamp_reads(convert, tmp_path):
    embeddings = ours(tmp_path / "ours", "s")
    assert convert(tmp_path / "ours", "--to", "stamp", "--out", tmp_path / "out") == 0
    with h5py.File(tmp_path / "out/s.h5") as file:
        assert file["feats"].dtype == np.float16 and file["coords"].dtype == np.float32
        assert np.array_equal(np.rint(file["coords"][:] / 0.2525), embeddings.coords_l0)
        attributes = dict(file.attrs)
    assert attributes["tile_size_um"] / attributes["tile_size_px"] == pytest.approx(INFO.mpp)
    assert (attributes["unit"], attributes["feat_type"], attributes["extractor"]) == ("um", "tile", "resnet18")


def test_no_path_of_this_machine_is_written(convert, tmp_path):
    ours(tmp_path / "ours", "s")
    for layout in FOREIGN:
        assert convert(tmp_path / "ours", "--to", layout, "--out", tmp_path / layout) == 0
        for file in [*(tmp_path / layout).rglob("*.h5"), *(tmp_path / layout).rglob("*.pt")]:
            assert str(tmp_path).encode() not in file.read_bytes()


# What the other tools wrote


def test_clam_with_flags_and_without(convert, tmp_path):
    embeddings = made(dtype=np.float32)
    as_clam(tmp_path / "clam", "s", embeddings.features, embeddings.coords_l0)
    assert convert(tmp_path / "clam", "--to", "slidemil", "--out", tmp_path / "out") == 1
    assert reasons(tmp_path / "out")["s"].endswith(
        "slidemil needs what this clam file does not say: encoder, patch_size_px, patch_size_l0, overlap_px, width_l0, "
        "height_l0, mpp_l0; give --encoder, --patch-px, --patch-size-l0, --overlap-px, --width-l0 (or a table with "
        "`path`: --slides), --height-l0 (or a table with `path`: --slides), --mpp-l0 (or a table with `mpp`: --slides)"
    )
    flags = ["--encoder", "uni", "--patch-px", 256, "--patch-size-l0", 512, "--overlap-px", 0, "--width-l0", 90_000]
    flags += ["--height-l0", 70_000, "--mpp-l0", 0.25]
    assert convert(tmp_path / "clam", "--to", "slidemil", "--out", tmp_path / "out", *flags) == 0
    found = read_embeddings(tmp_path / "out/s.h5")
    assert np.array_equal(found.features, embeddings.features) and found.features.dtype == np.float32
    assert np.array_equal(found.coords_l0, embeddings.coords_l0)
    digest = found.info.store_digest
    assert digest.startswith("clam:") and len(digest) == 5 + 64
    assert asdict(found.info) == dict(
        slide_id="s", store_digest=digest, encoder="uni", weights=UNKNOWN, weights_sha256=UNKNOWN, input_px=0,
        normalisation=UNKNOWN, precision=UNKNOWN, decoder=UNKNOWN, engine=UNKNOWN, patch_size_px=256,
        patch_size_l0=512, overlap_px=0, width_l0=90_000,
        height_l0=70_000, mpp_l0=0.25, mpp=0.5, slide_fingerprint="",
    )  # fmt: skip
    unscaled = [*flags[:-1], "none"]
    assert convert(tmp_path / "clam", "--to", "slidemil", "--out", tmp_path / "unscaled", *unscaled) == 0
    assert math.isnan(read_embeddings(tmp_path / "unscaled/s.h5").info.mpp)


def test_clams_patching_files_know_the_patch_size(convert, tmp_path):
    embeddings = made(dtype=np.float32)
    as_clam(tmp_path / "clam", "s", embeddings.features, embeddings.coords_l0)
    flags = ["--to", "slidemil", "--encoder", "uni", "--overlap-px", 0, "--mpp-l0", 0.25]
    as_clam_patches(tmp_path / "p0", "s", embeddings.coords_l0)
    assert convert(tmp_path / "clam", "--out", tmp_path / "a", "--clam-patches", tmp_path / "p0", *flags) == 0
    info = read_embeddings(tmp_path / "a/s.h5").info
    assert (info.patch_size_px, info.patch_size_l0, info.width_l0, info.mpp) == (256, 256, 90_000, 0.25)
    as_clam_patches(tmp_path / "p1", "s", embeddings.coords_l0, level=1)  # its size is that of level 1: asked for
    there = ["--clam-patches", tmp_path / "p1", *flags]
    assert convert(tmp_path / "clam", "--out", tmp_path / "b", *there) == 1
    assert "does not say: width_l0, height_l0; give" in reasons(tmp_path / "b")["s"]
    assert convert(tmp_path / "clam", "--out", tmp_path / "b", *there, "--width-l0", 90_000, "--height-l0", 70_000) == 0
    assert read_embeddings(tmp_path / "b/s.h5").info.patch_size_l0 == 1024
    as_clam_patches(tmp_path / "p2", "s", embeddings.coords_l0[::-1])
    assert convert(tmp_path / "clam", "--out", tmp_path / "c", "--clam-patches", tmp_path / "p2", *flags) == 1
    assert "its coordinates are not those of" in reasons(tmp_path / "c")["s"]


def test_tensors_alone_need_the_patching_files_and_never_run_code(convert, tmp_path):
    embeddings = made(dtype=np.float32)
    as_clam(tmp_path / "clam", "s", embeddings.features, embeddings.coords_l0).unlink()
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (mark,))

    (tmp_path / "clam/pt_files/evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"features": Evil()}, tmp_path / "clam/pt_files/evil2.pt")
    torch.save([1], tmp_path / "clam/pt_files/list.pt")
    (tmp_path / "clam/pt_files/cut.pt").write_bytes((tmp_path / "clam/pt_files/s.pt").read_bytes()[:300])
    as_clam_patches(tmp_path / "p", "s", embeddings.coords_l0)
    arguments = ["--to", "clam", "--out", tmp_path / "out"]
    assert convert(tmp_path / "clam", *arguments) == 1
    assert "holds no coordinates; convert it with convert-features --clam-patches" in reasons(tmp_path / "out")["s"]
    assert convert(tmp_path / "clam", *arguments, "--clam-patches", tmp_path / "p") == 1
    assert statuses(tmp_path / "out") == {n: "failed" for n in ("cut", "evil", "evil2", "list")} | {"s": "done"}
    found = reasons(tmp_path / "out")
    assert "holds list, expected one tensor" in found["list"] and "could run code" in found["evil2"]
    assert not mark.exists()
    assert np.array_equal(open_features(tmp_path / "out").read("s").coords_l0, embeddings.coords_l0)


def test_trident_says_all_but_the_scale(convert, tmp_path):
    embeddings = made()
    as_trident(tmp_path / "job", "s", embeddings.features, embeddings.coords_l0)
    assert convert(tmp_path / "job", "--to", "slidemil", "--out", tmp_path / "out") == 1
    assert "does not say: mpp_l0; give --mpp-l0" in reasons(tmp_path / "out")["s"]
    assert convert(tmp_path / "job", "--to", "slidemil", "--out", tmp_path / "out", "--mpp-l0", 0.24) == 0
    info = read_embeddings(tmp_path / "out/s.h5").info
    assert (info.encoder, info.patch_size_px, info.patch_size_l0, info.overlap_px) == ("uni_v1", 512, 1024, 0)
    assert (info.width_l0, info.height_l0, info.mpp_l0, info.mpp) == (90_000, 70_000, 0.24, 0.48)
    assert convert(tmp_path / "job", "--to", "clam", "--out", tmp_path / "clam") == 0  # which needs nothing


def test_contradictions_are_refused(convert, tmp_path):
    embeddings = made()
    as_trident(tmp_path / "job", "s", embeddings.features, embeddings.coords_l0)
    flags = ["--to", "slidemil", "--out", tmp_path / "out", "--mpp-l0", 0.25]
    assert convert(tmp_path / "job", *flags, "--patch-size-l0", 512) == 1
    assert "patch_size_l0 is 1024 in the file and 512 in the request" in reasons(tmp_path / "out")["s"]
    as_stamp(tmp_path / "stamp", "s", embeddings.features, embeddings.coords_l0 * 0.25)
    assert convert(tmp_path / "stamp", *flags, "--patch-size-l0", 512) == 1
    assert "256 µm wide, at 0.25 µm per level-0 pixel 1024 pixels, not 512" in reasons(tmp_path / "out")["s"]


def test_older_trident_files(tmp_path):
    """Coordinates as floats, an encoder without a name, a slide without patches in the shape that TRIDENT gives it."""
    path = as_trident(tmp_path, "s", made().features, made().coords_l0)
    with h5py.File(path, "a") as file:
        floats = file["coords"][:] + 0.25
        attributes = dict(file["coords"].attrs)
        del file["coords"]
        file["coords"] = floats
        file["coords"].attrs.update({**attributes, "patch_size_level0": 1024.0, "overlap": "NA"})
        file["features"].attrs["encoder"] = "None"
    found = open_features(tmp_path).read("s")
    assert np.array_equal(found.coords_l0, made().coords_l0) and found.info.encoder == UNKNOWN
    assert (found.info.patch_size_l0, found.info.overlap_px) == (1024, -1)
    with h5py.File(path, "a") as file:
        del file["coords"], file["features"]
        file["coords"], file["features"] = np.empty((0, 2), np.int64), np.empty(0, np.float32)
        file["features"].attrs["encoder"] = "None"
    assert open_features(tmp_path).read("s").features.shape == (0, 0)


@pytest.mark.parametrize("mpp", [0.25, 0.2525, 0.24327, 1 / 3])
def test_stamps_micrometres_are_the_exact_pixels(convert, tmp_path, mpp):
    embeddings = made(2000, height_l0=10**6)
    as_stamp(tmp_path / "stamp", "s", embeddings.features, embeddings.coords_l0 * mpp)
    flags = ["--to", "slidemil", "--out", tmp_path / "out", "--overlap-px", 0, "--width-l0", 90_000]
    flags += ["--height-l0", 70_000]
    assert convert(tmp_path / "stamp", *flags) == 1
    assert "does not say: patch_size_l0, mpp_l0; give --patch-size-l0, --mpp-l0" in reasons(tmp_path / "out")["s"]
    assert convert(tmp_path / "stamp", *flags, "--mpp-l0", repr(mpp)) == 0
    found = read_embeddings(tmp_path / "out/s.h5")
    assert np.array_equal(found.coords_l0, embeddings.coords_l0)
    assert (found.info.encoder, found.info.patch_size_px, found.info.patch_size_l0) == ("uni2", 224, round(256 / mpp))


def test_a_wrong_scale_puts_patches_outside_the_slide(convert, tmp_path):
    embeddings = made(500)
    as_stamp(tmp_path / "stamp", "s", embeddings.features, embeddings.coords_l0 * 0.5)
    flags = ["--to", "slidemil", "--out", tmp_path / "out", "--overlap-px", 0, "--width-l0", 90_000]
    assert convert(tmp_path / "stamp", *flags, "--height-l0", 70_000, "--mpp-l0", 0.25) == 1
    assert "outside a slide of (90000, 70000) px; check --mpp-l0" in reasons(tmp_path / "out")["s"]


def test_stamp_files_that_are_something_else(tmp_path):
    path = as_stamp(tmp_path, "s", made().features, made().coords_l0)
    with h5py.File(path, "a") as file:
        file.attrs["feat_type"] = "slide"
    with pytest.raises(SlideError, match="feat_type is 'slide'"):
        open_features(tmp_path).read("s")
    with h5py.File(path, "a") as file:
        file.attrs["feat_type"] = "tile"
        del file.attrs["unit"], file.attrs["tile_size_um"]
        file.attrs["tile_size"] = 224
    with pytest.raises(SlideError, match=r"unit None and tile size None, expected coordinates in µm"):
        open_features(tmp_path).read("s")
    with h5py.File(path, "a") as file:  # version 2.0
        file.attrs.update(unit="um", tile_size=256.0)
    assert open_features(tmp_path).find("s").said.patch_size_um == 256


def test_a_slide_table_gives_scale_and_size(convert, tmp_path, phantom_slide):
    coords = np.array([[0, 0], [3488, 2496]])
    for name in ("a", "b", "left-out"):
        as_clam(tmp_path / "clam", name, np.ones((2, 3)), coords)
    table = tmp_path / "slides.csv"
    table.write_text(f"slide_id,path,mpp\na,{phantom_slide},\nb,{phantom_slide},0.3\nnone,{phantom_slide},\n")
    flags = ["--to", "slidemil", "--out", tmp_path / "out", "--slides", table, "--encoder", "uni", "--patch-px", 256]
    flags += ["--patch-size-l0", 512, "--overlap-px", 0]
    assert convert(tmp_path / "clam", *flags) == 1
    assert statuses(tmp_path / "out") == {"a": "done", "b": "done", "none": "failed"}
    infos = [read_embeddings(tmp_path / f"out/{name}.h5").info for name in ("a", "b")]
    assert [(i.width_l0, i.height_l0, round(i.mpp_l0, 6)) for i in infos] == [(4000, 3008, 0.25), (4000, 3008, 0.3)]
    table.write_text(f"slide_id,path\na,{tmp_path}/no.svs\n")
    assert convert(tmp_path / "clam", *flags, "--overwrite") == 1 and "no such file" in reasons(tmp_path / "out")["a"]


def test_a_slide_without_a_scale_is_given_one(convert, tmp_path):
    ours(tmp_path / "ours", "s", mpp_l0=math.nan, mpp=math.nan)
    flags = [tmp_path / "ours", "--to", "stamp", "--out", tmp_path / "out"]
    assert convert(*flags) == 1 and "the slide has no scale; give --mpp-l0" in reasons(tmp_path / "out")["s"]
    assert convert(*flags, "--mpp-l0", 0.5) == 0
    info = open_features(tmp_path / "out").read("s").info
    assert (info.mpp_l0, info.mpp) == (0.5, 0.5 * 507 / 256)


def test_an_encoder_with_a_slash_makes_one_folder(convert, tmp_path):
    ours(tmp_path / "ours", "s", encoder="hub/vit")
    assert convert(tmp_path / "ours", "--to", "trident", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/features_hub-vit/s.h5").is_file()
    assert open_features(tmp_path / "out").read("s").info.encoder == "hub/vit"


# Types


def test_narrowing_is_asked_for(convert, tmp_path):
    embeddings = made(dtype=np.float32)
    as_trident(tmp_path / "job", "s", embeddings.features, embeddings.coords_l0)
    flags = ["--to", "slidemil", "--mpp-l0", 0.25]
    for dtype in ("keep", "float16"):
        assert convert(tmp_path / "job", *flags, "--out", tmp_path / dtype, "--features-dtype", dtype) == 0
    assert read_embeddings(tmp_path / "keep/s.h5").features.dtype == np.float32
    narrow = read_embeddings(tmp_path / "float16/s.h5").features
    assert narrow.dtype == np.float16 and np.array_equal(narrow, embeddings.features.astype(np.float16))
    as_trident(tmp_path / "job", "s", embeddings.features * 1e6, embeddings.coords_l0)
    assert convert(tmp_path / "job", *flags, "--out", tmp_path / "big", "--features-dtype", "float16") == 1
    assert "above float16" in reasons(tmp_path / "big")["s"]
    as_trident(tmp_path / "job", "s", embeddings.features.astype(np.float64), embeddings.coords_l0)
    assert convert(tmp_path / "job", *flags, "--out", tmp_path / "f64") == 1
    assert "features are float64; say --features-dtype" in reasons(tmp_path / "f64")["s"]


def test_changed_features_keep_their_own_type(tmp_path):
    """What came from our float16 and was changed by others is not pressed into float16 again."""
    LAYOUTS["clam"].write(tmp_path / "h5_files/s.h5", made(slide_id="s"))
    assert open_features(tmp_path).read("s").features.dtype == np.float16
    with h5py.File(tmp_path / "h5_files/s.h5", "a") as file:
        file["features"][0, 0] = np.float32(1 / 3)
    found = open_features(tmp_path).read("s").features
    assert found.dtype == np.float32 and found[0, 0] == np.float32(1 / 3)


# Requests, damage, resuming


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "clam", "--features-dtype", "float16"], "CLAM's files and models are float32"),
        (["--to", "stamp", "--mpp-l0", "100"], "--mpp-l0 is 100.0, expected 0.05 to 20"),
        (["--to", "stamp", "--patch-px", "0"], "--patch-px is 0, expected at least 1"),
        (["--to", "stamp", "--slides", "no.csv"], "no.csv: no such slide table"),
        (["--to", "clam", "--clam-patches", "nowhere"], "--clam-patches nowhere: no such folder"),
        (["--to", "clam", "--part", "3/2"], "--part 3/2"),
    ],
)
def test_wrong_requests(convert, tmp_path, capsys, flags, message):
    ours(tmp_path / "ours", "s")
    assert convert(tmp_path / "ours", "--out", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folders_that_cannot_be_meant(convert, tmp_path, capsys):
    arguments = ["--to", "clam", "--out", tmp_path / "out"]
    assert convert(tmp_path / "nowhere", *arguments) == 2 and "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "empty", *arguments) == 2 and "no feature file" in capsys.readouterr().err
    as_trident(tmp_path / "job", "s", made().features, made().coords_l0)
    (tmp_path / "job/features_uni_v1").rename(tmp_path / "job/features_conch")
    as_trident(tmp_path / "job", "s", made().features, made().coords_l0)
    assert convert(tmp_path / "job", *arguments) == 2
    assert "feature files lie in features_conch, features_uni_v1; name the folder" in capsys.readouterr().err
    assert convert(tmp_path / "job/features_conch/s.h5", *arguments) == 0  # one file


def test_damaged_files_fail_alone(convert, tmp_path):
    folder = tmp_path / "job/features_uni_v1"
    for name in ("cut", "good", "keyless", "lengths", "nan", "slide", "strange", "text", "ints", "inf-coords"):
        as_trident(tmp_path / "job", name, made(50).features, made(50).coords_l0)
    (folder / "cut.h5").write_bytes((folder / "cut.h5").read_bytes()[:-2000])
    (folder / "text.h5").write_text("not HDF5")
    replaced = {
        "lengths": ("coords", made(49).coords_l0),
        "nan": ("features", np.full((50, 4), np.nan, np.float32)),
        "slide": ("features", np.ones(4, np.float32)),
        "ints": ("features", np.ones((50, 4), np.int64)),
        "inf-coords": ("coords", np.full((50, 2), np.inf)),
    }
    for name, (key, values) in replaced.items():
        with h5py.File(folder / f"{name}.h5", "a") as file:
            del file[key]
            file[key] = values
    with h5py.File(folder / "keyless.h5", "a") as file:
        del file["coords"]
    with h5py.File(folder / "strange.h5", "w") as file:
        file["embedding"] = 1
    assert convert(tmp_path / "job", "--to", "clam", "--out", tmp_path / "out") == 1
    found = reasons(tmp_path / "out")
    assert set(found) == {"cut", "keyless", "lengths", "nan", "slide", "strange", "text", "ints", "inf-coords"}
    assert "not a readable HDF5 file" in found["cut"] and "not a readable HDF5 file" in found["text"]
    assert "no data set 'coords'; found 'features'" in found["keyless"]
    assert "features (50, 4) and coords (49, 2) int64 do not belong together" in found["lengths"]
    assert "features hold NaN or infinity" in found["nan"] and "is this a slide feature?" in found["slide"]
    assert "no features of slidemil, stamp, trident, clam: the file holds 'embedding'" in found["strange"]
    assert "features are int64, expected floating point" in found["ints"]
    assert "coords hold NaN or infinity" in found["inf-coords"]
    assert [p.name for p in (tmp_path / "out/h5_files").iterdir()] == ["good.h5"]


def test_our_own_damaged_file_is_not_taken_for_anothers(convert, tmp_path):
    ours(tmp_path / "ours", "s")
    with h5py.File(tmp_path / "ours/s.h5", "a") as file:
        file.attrs["version"] = 3
    assert convert(tmp_path / "ours", "--to", "clam", "--out", tmp_path / "out") == 1
    assert "slidemil-features version 3, this program reads version 2" in reasons(tmp_path / "out")["s"]


def test_a_forced_layout(convert, tmp_path):
    as_trident(tmp_path / "job", "s", made().features, made().coords_l0)
    assert open_features(tmp_path / "job", "clam").read("s").info.encoder == UNKNOWN
    assert convert(tmp_path / "job", "--from", "stamp", "--to", "clam", "--out", tmp_path / "out") == 1
    assert "no data set 'feats'" in reasons(tmp_path / "out")["s"]


@pytest.mark.parametrize("layout", [*FOREIGN, "slidemil"])
def test_resuming(convert, tmp_path, layout):
    for name in ("a", "b"):
        ours(tmp_path / "ours", name)
    flags = [tmp_path / "ours", "--to", layout, "--out", tmp_path / "out"]
    assert convert(*flags) == 0
    first = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*") if p.suffix in (".h5", ".pt")}
    lost = next(p for p in first if p.name == "a.h5")
    (lost.parent / f".{lost.name}.tmp-1-x").write_bytes(b"of a killed job")
    lost.unlink()
    assert convert(*flags) == 0 and statuses(tmp_path / "out") == {"a": "done", "b": "skipped"}
    assert {p: p.read_bytes() for p in first} == first
    ours(tmp_path / "ours", "a", seed=1)
    assert convert(*flags) == 1
    assert "exists and says something else (" in reasons(tmp_path / "out")["a"]
    assert convert(*flags, "--overwrite") == 0
    assert np.array_equal(open_features(tmp_path / "out").read("a").features, made(seed=1).features)
    assert not [p for p in (tmp_path / "out").rglob("*") if ".tmp-" in p.name or p.suffix == ".lock"]


def test_clams_two_files_belong_together(convert, tmp_path):
    for name in ("a", "b"):
        ours(tmp_path / "ours", name)
    flags = [tmp_path / "ours", "--to", "clam", "--out", tmp_path / "out"]
    assert convert(*flags) == 0
    (tmp_path / "out/pt_files/a.pt").unlink()
    torch.save(torch.ones(5, 4), tmp_path / "out/pt_files/b.pt")
    assert convert(*flags) == 1
    found = reasons(tmp_path / "out")
    assert "a.pt is missing" in found["a"] and "b.pt: other values" in found["b"]
    assert convert(*flags, "--overwrite") == 0 and convert(*flags) == 0
    assert statuses(tmp_path / "out") == {"a": "skipped", "b": "skipped"}


def test_input_is_not_replaced_by_its_own_conversion(convert, tmp_path):
    ours(tmp_path / "ours", "s")
    before = (tmp_path / "ours/s.h5").read_bytes()
    assert convert(tmp_path / "ours", "--to", "stamp", "--out", tmp_path / "ours", "--overwrite") == 1
    assert "choose another --out" in reasons(tmp_path / "ours")["s"]
    assert (tmp_path / "ours/s.h5").read_bytes() == before


def test_parts_make_the_whole(convert, tmp_path):
    for name in "abc":
        ours(tmp_path / "ours", name)
    for part in ("1/2", "2/2"):
        assert convert(tmp_path / "ours", "--to", "stamp", "--out", tmp_path / "out", "--part", part) == 0
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.h5")) == ["a", "b", "c"]


def test_the_yaml_file_says_the_defaults(convert, tmp_path):
    file = Path(__file__).parents[3] / "configs/convert.yaml"
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == asdict(ConvertConfig())
    ours(tmp_path / "ours", "s")
    assert convert(tmp_path / "ours", "--to", "clam", "--out", tmp_path / "out", "--config", file) == 0


def test_help_needs_no_torch():
    code = "import sys; import features.interop.cli; assert not {'torch', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


# Training in place


@pytest.fixture
def cohort(tmp_path):
    """The same 16 slides as ours, CLAM's and TRIDENT's; a label table."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(16):
        slide_id, label = f"s{i:02d}", i // 2 % 2
        features = rng.normal(size=(12, 6)).astype(np.float16)
        features[:3, 0] += np.float16(4 * label)
        coords = np.array([(x * 1024, y * 1024) for y in range(3) for x in range(4)])
        info = replace(INFO, slide_id=slide_id, patch_size_px=512, patch_size_l0=1024, width_l0=4096, height_l0=3072)
        info = replace(info, store_digest=f"store-{i}", slide_fingerprint=f"file-{i}")
        write_embeddings(tmp_path / f"ours/{slide_id}.h5", Embeddings(features, coords, info))
        as_clam(tmp_path / "clam", slide_id, features, coords)
        with h5py.File(as_trident(tmp_path / "trident", slide_id, features, coords), "a") as file:
            file["coords"].attrs.update(level0_width=4096, level0_height=3072)
        rows.append((slide_id, f"p{i // 2}", ("normal", "tumour")[label]))
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "diagnosis"]).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


CONFIG = TrainConfig(folds=2, epochs=4, bootstrap=100, device="cpu")


def test_training_in_place_gives_the_same_predictions(cohort, capsys):
    for layout in ("ours", "clam", "trident"):
        out = cohort / f"run-{layout}"
        display = Display(plain_console())
        assert not train_mil(cohort / layout, cohort / "labels.csv", "diagnosis", out, CONFIG, display).unreadable
        said = capsys.readouterr()
        assert ("do not say which encoder" in said.out + said.err) == (layout == "clam")
    for layout in ("clam", "trident"):
        for name in ("predictions.csv", "metrics.json", "fold-0/checkpoint.safetensors"):
            assert (cohort / f"run-{layout}" / name).read_bytes() == (cohort / "run-ours" / name).read_bytes()
    made_from = {n: json.loads((cohort / f"run-{n}/provenance.json").read_text()) for n in ("ours", "clam", "trident")}
    assert made_from["clam"]["features_sha256"] == made_from["ours"]["features_sha256"]
    unknown = dict.fromkeys(("weights_sha256", "normalisation", "precision"), UNKNOWN)
    expected = {**unknown, "input_px": 0, "dim": 6, "mpp": None}
    assert made_from["clam"]["features"] == {**expected, "encoder": UNKNOWN}
    assert made_from["trident"]["features"] == {**expected, "encoder": "uni_v1"}
    found = predict_folder(cohort / "run-clam", cohort / "clam", {}, "cpu")
    assert len(found.table) == 16 and not found.failures
    with pytest.raises(RequestError, match="encoder 'unknown' instead of 'resnet18'"):
        predict_folder(cohort / "run-ours", cohort / "clam", {}, "cpu")


def test_what_training_in_place_says_and_refuses(cohort, tmp_path):
    for i, file in enumerate(sorted((cohort / "ours").glob("*.h5"))):
        embeddings = read_embeddings(file)
        features = embeddings.features.astype(np.float32) + np.float32(1e-5) * (i == 3)
        as_clam(tmp_path / "c", file.stem, features, embeddings.coords_l0)
        as_stamp(tmp_path / "stamp", file.stem, embeddings.features, embeddings.coords_l0 * 0.25)
    said = load_cohort(tmp_path / "c", cohort / "labels.csv", "diagnosis").warnings
    assert "features of 1 slide(s) are float32 and are rounded to float16 for training" in said
    assert any("export-heatmaps will refuse them" in line for line in said)
    assert load_cohort(cohort / "clam", cohort / "labels.csv", "diagnosis").warnings == said[1:]
    with pytest.raises(RequestError, match="its coordinates are in µm and it does not say the slide's µm per pixel"):
        load_cohort(tmp_path / "stamp", cohort / "labels.csv", "diagnosis")


def test_heatmaps_need_the_geometry(cohort, phantom_slide):
    out = cohort / "maps"
    for layout in ("clam", "trident"):
        with h5py.File(next((cohort / layout).rglob("s00.h5")), "a") as file:
            if layout == "trident":
                file["coords"].attrs.update(level0_width=4000, level0_height=3008)
        train_mil(cohort / layout, cohort / "labels.csv", "diagnosis", cohort / f"run-{layout}", CONFIG)
    rows = [SlideRow("s00", path=phantom_slide)]
    found = export_heatmaps(cohort / "run-clam", cohort / "clam", rows, HeatmapConfig(workers=1), out / "clam")
    assert found.counts == {"failed": 1}
    assert "did not say how large a patch and the slide are" in reasons(out / "clam")["s00"]
    found = export_heatmaps(cohort / "run-trident", cohort / "trident", rows, HeatmapConfig(workers=1), out / "t")
    assert found.counts == {"done": 1}
    collection = json.loads((out / "t/s00.geojson").read_text())
    assert collection["features"][1]["geometry"]["coordinates"][0][0] == [1024, 0]

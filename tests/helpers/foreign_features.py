"""Feature files of CLAM, TRIDENT and STAMP, written by their layouts with plain h5py as their own writers do."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from features.feature_file import EmbeddingInfo, Embeddings, write_embeddings

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
    coords[:2] = np.array([(-199, 60_000), (80_000, -7)])[:rows]  # patches may stick out over the slide
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


def as_stamp_1(folder: Path, slide_id: str, features, coords, augmented=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{slide_id}.h5", "w") as file:
        file["coords"] = coords
        file["feats"] = features.astype(np.float16)
        file["augmented"] = np.zeros(len(features), bool) if augmented is None else augmented
        file.attrs["extractor"] = "STAMP-extract-1.0.3_xiyuewang-ctranspath-7c998680"
    return folder / f"{slide_id}.h5"


def reasons(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open() as file:
        return {row["slide_id"]: row["reason"] for row in csv.DictReader(file)}


def statuses(out: Path) -> dict[str, str]:
    slides = json.loads((out / "summary.json").read_text())["slides"]
    return {name: slide["status"] for name, slide in slides.items()}

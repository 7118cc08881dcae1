"""Pictures of the report: the right patches in the right order, from the very store that was embedded, or none."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil.report.pictures import top_patches, write_pictures
from mil.run.attention import SlideAttention, attention_path, read_attention, write_attention
from mil.run.layout import picture_path, pictured_slides
from mil.tasks.classification import Classification
from mil.training.command import train_mil
from mil.training.config import TrainConfig
from tiling.jobs.errors import RequestError
from tiling.store.patches import AREA_SCORES, Candidates, MadePatch, PatchStore, PatchStoreInfo, encode, write_store
from tiling.tissue.tissue import TissueMap

SIDE, PATCHES = 16, 6
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]


def _store(folder: Path, slide_id: str, pixels: str = "zstd", left: int = 0) -> str:
    """A store of PATCHES patches, each of a colour of its own; its digest."""
    place = dict(width_l0=320, height_l0=64, mpp_l0=0.25, mpp_source="openslide", mpp_table=math.nan, mpp=0.25)
    info = PatchStoreInfo(
        slide_id=slide_id,
        fingerprint=slide_id,
        **place,
        **dict(patch_size_px=SIDE, patch_size_l0=SIDE, overlap_px=0, level=0, backend="x", packages={}),
        config={"pixels": pixels, "jpeg_quality": 90},
        thumbnail_downsample=1.0,
    )
    coords = np.array([(left + i * SIDE, SIDE) for i in range(PATCHES)], np.int64)
    ones = {name: np.ones(PATCHES, np.float32) for name in AREA_SCORES}
    patches = [np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in COLOURS]
    made = [MadePatch(i, 1.0, encode(patch, info)) for i, patch in enumerate(patches)]
    thumbnail = np.full((64, 320, 3), 255, np.uint8)
    tissue = TissueMap(*np.ones((4, 64, 320), bool))
    write_store(folder / f"{slide_id}.zarr", info, Candidates(coords, ones), tissue, thumbnail, made)
    return PatchStore(folder / f"{slide_id}.zarr").digest


def _slide(attention, logits=None, probabilities=(0.5, 0.5)) -> SlideAttention:
    n = len(attention)
    return SlideAttention(
        attention=np.array(attention, np.float32),
        patch_logits=np.zeros((n, 2), np.float32) if logits is None else np.array(logits, np.float32),
        coords=np.array([(i * SIDE, SIDE) for i in range(n)], np.int64),
        slide_id="s",
        label="a",
        task=Classification(("a", "b"), 1),
        probabilities=np.array(probabilities),
        **dict(patch_size_l0=SIDE, overlap_px=0, patch_size_px=SIDE, width_l0=320, height_l0=64, mpp_l0=0.25),
    )


def test_the_patches_with_the_most_attention_come_first():
    assert top_patches(_slide([0.1, 0.4, 0.1, 0.3, 0.1]), 3).tolist() == [1, 3, 0]


def test_where_all_weigh_alike_the_score_of_the_predicted_class_decides():
    logits = [[0, 1], [0, 3], [5, 0], [0, 2]]
    assert top_patches(_slide([0.25] * 4, logits, (0.2, 0.8)), 2).tolist() == [1, 3]
    assert top_patches(_slide([0.25] * 4, logits, (0.8, 0.2)), 1).tolist() == [2]


def test_pictures_show_the_top_patches_and_where_they_lie(tmp_path):
    digest = _store(tmp_path / "patches", "s")
    out = tmp_path / "run"
    write_attention(attention_path(out, "s"), _slide([0.05, 0.1, 0.15, 0.2, 0.24, 0.26]))
    write_pictures(out, tmp_path / "patches", {"s": digest}, pytest.fail)
    assert pictured_slides(out) == {"s"}
    strip = np.asarray(Image.open(picture_path(out, "patches", "s")), int)
    for place, patch in enumerate((5, 4, 3, 2, 1)):
        assert np.abs(strip[64, place * 132 + 64] - COLOURS[patch]).max() < 12
    thumbnail = np.asarray(Image.open(picture_path(out, "thumbnails", "s")), int)
    assert thumbnail.shape == (64, 320, 3)
    outlined = thumbnail[SIDE : 2 * SIDE, :, 2] < 200  # the outline is yellow on white
    assert outlined[:, SIDE + 4 : PATCHES * SIDE].any() and not outlined[:, PATCHES * SIDE + 6 :].any()
    assert not outlined[4:12, 4:12].any()  # patch 0 weighed least


def test_a_patch_over_the_edge_is_outlined_where_it_lies(tmp_path):
    digest = _store(tmp_path / "patches", "s", left=-5)
    slide = _slide([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    slide = replace(slide, coords=slide.coords - (5, 0))
    write_attention(attention_path(tmp_path / "run", "s"), slide)
    write_pictures(tmp_path / "run", tmp_path / "patches", {"s": digest}, pytest.fail)
    thumbnail = np.asarray(Image.open(picture_path(tmp_path / "run", "thumbnails", "s")), int)
    outlined = np.flatnonzero(thumbnail[SIDE + 8, :20, 2] < 128)
    assert outlined.min() >= SIDE - 5 - 3 and outlined.max() <= SIDE - 5 + 5  # its right side; the left one is off


def test_another_store_of_that_name_is_not_shown(tmp_path):
    digest = _store(tmp_path / "patches", "s")
    out, said = tmp_path / "run", []
    write_attention(attention_path(out, "s"), _slide([0.5, 0.5, 0, 0, 0, 0]))
    write_pictures(out, tmp_path / "patches", {"s": "x" + digest}, said.append)
    assert not pictured_slides(out) and "not the patch store" in said[0]
    write_pictures(out, tmp_path / "nowhere", {"s": digest}, pytest.fail)


def test_a_store_without_pixels_gives_a_reason(tmp_path):
    digest = _store(tmp_path / "patches", "s", pixels="reference")
    out, said = tmp_path / "run", []
    write_attention(attention_path(out, "s"), _slide([0.5, 0.5, 0, 0, 0, 0]))
    write_pictures(out, tmp_path / "patches", {"s": digest}, said.append)
    assert not pictured_slides(out) and "coordinates only" in said[0]


def test_a_finished_run_gets_its_pictures_later(tmp_path, write_features):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        digest = _store(tmp_path / "stores", f"s{i}")
        place = dict(patch_size_px=SIDE, patch_size_l0=SIDE, width_l0=320, height_l0=64)
        features = rng.normal(size=(PATCHES, 3)) + i % 2
        write_features(tmp_path / "f", f"s{i}", features, store_digest=digest, **place)
        rows.append((f"s{i}", "ab"[i % 2]))
    table = tmp_path / "labels.csv"
    pd.DataFrame(rows, columns=["slide_id", "y"]).to_csv(table, index=False)
    config = TrainConfig(folds=2, epochs=2, embed_dim=4, attention_dim=2, bootstrap=100, device="cpu")

    def train(**more):
        train_mil(tmp_path / "f", table, "y", tmp_path / "run", replace(config, **more))
        return (tmp_path / "run" / "report.html").read_text()

    assert "<img" not in train()
    weights = (tmp_path / "run" / "fold-0" / "checkpoint.safetensors").stat().st_mtime_ns
    with pytest.raises(RequestError, match="no such folder"):
        train(patches=str(tmp_path / "absent"))
    # The stores' patches lie elsewhere than the features say, so none of them is the one that was embedded.
    assert "<img" not in train(patches=str(tmp_path / "stores"))
    for i in range(12):
        slide = read_attention(attention_path(tmp_path / "run", f"s{i}"))
        moved = PatchStore(tmp_path / "stores" / f"s{i}.zarr").coords_l0
        write_attention(attention_path(tmp_path / "run", f"s{i}"), SlideAttention(**{**vars(slide), "coords": moved}))
    shown = train(patches=str(tmp_path / "stores"))
    assert shown.count("<img") == 24 and train() == shown  # pictures stay
    assert (tmp_path / "run" / "fold-0" / "checkpoint.safetensors").stat().st_mtime_ns == weights

"""`extract-features` as a user runs it: values, what is skipped, bad input, kills."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import google_crc32c
import numpy as np
import pytest
import torch
import yaml
from dask_threads import dask_worker

from features import making, pipeline
from features.config import EmbedSettings, FeatureConfig
from features.embed import pipe
from features.embed.pipe import Embedder, embed
from features.encoders import load_encoder
from features.feature_file import read_embeddings
from tiling.store.patches import PatchStore, encode

ROOT = Path(__file__).parents[2]
JPEG_INFO = SimpleNamespace(config={"pixels": "jpeg", "jpeg_quality": 90}, jpeg_subsampling="444")
POISON = np.full((2, 64, 64, 3), 7, np.uint8)


def reasons(out):
    with (out / "failures.csv").open() as file:
        return {row["slide_id"]: row["reason"] for row in csv.DictReader(file)}


def files(out):
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.h5"))}


def test_rows_are_the_stores_patches_in_order(extract, stores, tissue, tmp_path):
    out = tmp_path / "out"
    assert extract(stores, "--out", out, "--precision", "fp32", "--features-dtype", "float32") == 0
    encoder = load_encoder("resnet18", "random")
    found = read_embeddings(out / "a.h5")
    expected = embed(encoder, tissue(9, 64, seed=9), EmbedSettings(precision="fp32"))
    assert (found.features == expected).all() and found.features.dtype == np.float32
    assert found.coords_l0[:, 0].tolist() == list(range(0, 9 * 256, 256))
    info = found.info
    assert (info.encoder, info.weights, info.precision, info.input_px) == ("resnet18", "random (seed 0)", "fp32", 64)
    assert info.weights_sha256 == encoder.weights_sha256 and info.normalisation.startswith("mean=(0.485,")
    assert (info.patch_size_px, info.patch_size_l0, info.mpp, info.mpp_l0) == (64, 128, 0.5, 0.25)
    assert read_embeddings(out / "empty.h5").features.shape == (0, 512)
    counts = json.loads((out / "summary.json").read_text())["counts"]
    assert counts == {"done": 2, "empty": 1} and not (out / "failures.csv").exists()


def test_the_same_run_writes_the_same_bytes(extract, stores, tmp_path):
    for out in ("one", "two"):
        assert extract(stores, "--out", tmp_path / out, "--device", "cpu") == 0
    assert files(tmp_path / "one") == files(tmp_path / "two") and len(files(tmp_path / "one")) == 3
    found = read_embeddings(tmp_path / "one/a.h5")
    assert found.features.dtype == np.float16
    assert found.info.slide_fingerprint == PatchStore(stores / "a.zarr").info.fingerprint != ""


def test_the_first_line_and_the_summary_say_what_was_done(extract, stores, tmp_path, capsys):
    extract(stores, "--out", tmp_path / "out", "--precision", "bf16", "--device", "cpu")
    first, last = capsys.readouterr().out.splitlines()
    sha = load_encoder("resnet18", "random").weights_sha256[:12]
    assert first == f"extract-features: resnet18, weights random (seed 0) (sha256 {sha}), cpu bf16, batch 4, slides: 3"
    assert "2 done, 1 empty, 13 patches" in last and "/s)" in last


def test_done_is_skipped_and_other_settings_are_an_error_until_overwritten(extract, stores, tmp_path):
    out = tmp_path / "out"
    run = (stores, "--out", out, "--precision")
    assert extract(*run, "fp32") == 0
    before, times = files(out), [p.stat().st_mtime_ns for p in sorted(out.glob("*.h5"))]
    assert extract(*run, "fp32", "--batch-size", 3) == 0  # the batch size is no part of the result
    assert [p.stat().st_mtime_ns for p in sorted(out.glob("*.h5"))] == times
    assert json.loads((out / "summary.json").read_text())["counts"] == {"skipped": 3}
    assert extract(*run, "bf16") == 1
    assert "precision: found 'fp32', wanted 'bf16'" in reasons(out)["a"] and "--overwrite" in reasons(out)["a"]
    assert extract(*run, "fp32", "--features-dtype", "float32") == 1
    assert "features_dtype: found 'float16', wanted 'float32'" in reasons(out)["a"]
    assert extract(*run, "fp32", "--seed", 1) == 1 and "weights_sha256" in reasons(out)["a"]
    assert files(out) == before
    assert extract(*run, "bf16", "--overwrite") == 0
    assert read_embeddings(out / "a.h5").info.precision == "bf16" and not (out / "failures.csv").exists()


def test_files_say_what_decoded_and_computed_them_and_other_ones_are_not_added_to(
    extract, stores, make_store, tissue, tmp_path, monkeypatch
):
    out, alone = tmp_path / "out", tmp_path / "one.csv"
    jpegs = [encode(patch, JPEG_INFO) for patch in tissue(4, 64)]
    make_store(stores, "jpeg", tissue(4, 64), jpegs=jpegs)
    alone.write_text("slide_id\na\n")
    assert extract(stores, "--out", out, "--device", "cpu", "--slides", alone) == 0
    now = f"torch {torch.__version__.partition('+')[0]} on cpu"
    assert (read_embeddings(out / "a.h5").info.engine, read_embeddings(out / "a.h5").info.decoder) == (
        now,
        "zstd, lossless",
    )
    monkeypatch.setattr(pipe, "engine_version", lambda *_: "torch 1.0 on cuda")
    assert extract(stores, "--out", out, "--device", "cpu") == 1
    assert list(files(out)) == ["a.h5"] and set(reasons(out)) == {"a", "b", "empty", "jpeg"}
    for reason in reasons(out).values():
        assert reason.startswith("a.h5 exists") and f"engine: found '{now}', wanted 'torch 1.0 on cuda'" in reason
    monkeypatch.undo()
    assert extract(stores, "--out", out, "--device", "cpu") == 0
    assert read_embeddings(out / "jpeg.h5").info.decoder == f"simplejpeg {metadata.version('simplejpeg')}"
    monkeypatch.setattr(making, "decoder_of", lambda store: "another")
    assert extract(stores, "--out", out, "--device", "cpu") == 1
    assert "decoder: found 'zstd, lossless', wanted 'another'" in reasons(out)["a"]


def test_a_folder_of_version_1_is_not_added_to(extract, stores, tmp_path):
    (tmp_path / "out").mkdir()
    shutil.copy(ROOT / "tests/golden/features-v1.h5", tmp_path / "out/old.h5")
    assert extract(stores, "--out", tmp_path / "out", "--device", "cpu") == 1
    assert (
        "old.h5 exists" in reasons(tmp_path / "out")["a"]
        and "engine: found 'unknown'" in reasons(tmp_path / "out")["a"]
    )


def test_a_store_that_changed_is_noticed(extract, stores, make_store, tissue, tmp_path):
    assert extract(stores, "--out", tmp_path / "out") == 0
    make_store(stores, "b", tissue(5, 64, seed=8))
    assert extract(stores, "--out", tmp_path / "out") == 1
    assert list(reasons(tmp_path / "out")) == ["b"] and "store_digest" in reasons(tmp_path / "out")["b"]


@pytest.mark.parametrize("count", [9, 20, 3, None])
def test_a_store_that_is_tiled_again_meanwhile_fails_its_slide_alone(
    extract, stores, make_store, tissue, tmp_path, monkeypatch, count
):
    """Its new pixels would stand beside the coordinates that were read before; count: its patches, None: it is gone."""
    opened = pipeline.patches_of

    @contextmanager
    def tiled_again(store, slide, *indices):
        with opened(store, slide, *indices) as source:
            if store.path.name == "a.zarr":
                shutil.rmtree(store.path) if count is None else make_store(stores, "a", tissue(count, 64, seed=1))
            yield source

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "patches_of", tiled_again)
        assert extract(stores, "--out", tmp_path / "out", "--device", "cpu") == 1
    assert list(reasons(tmp_path / "out")) == ["a"] and list(files(tmp_path / "out")) == ["b.h5", "empty.h5"]
    said = "a.zarr: was tiled again, or taken away, while it was read; wait for tile-slides, then run the same command "
    assert reasons(tmp_path / "out")["a"] == f"{said}again"
    if count is not None:
        assert extract(stores, "--out", tmp_path / "out", "--device", "cpu") == 0
        store = PatchStore(stores / "a.zarr")
        found = read_embeddings(tmp_path / "out/a.h5")
        assert found.info.store_digest == store.digest and (found.coords_l0 == store.coords_l0).all()


def test_nan_and_overflow_are_failures_of_their_slide_alone(extract, stores, make_store, tmp_path, monkeypatch):
    make_store(stores, "nan", POISON)
    make_store(stores, "huge", POISON + 1)
    compute = Embedder._compute

    def poisoned(self, run, pixels):
        factors = {7: torch.nan, 8: 1e9}
        return compute(self, run, pixels) * torch.tensor([[factors.get(int(patch.max()), 1)] for patch in pixels])

    monkeypatch.setattr(Embedder, "_compute", poisoned)
    assert extract(stores, "--out", tmp_path / "out", "--device", "cpu") == 1
    assert "NaN" in reasons(tmp_path / "out")["nan"] and "--features-dtype" in reasons(tmp_path / "out")["huge"]
    assert sorted(files(tmp_path / "out")) == ["a.h5", "b.h5", "empty.h5"]


def shard_of(store):
    return next(p for p in (store / "patches").rglob("*") if p.is_file() and p.name != "zarr.json")


def flip_a_byte(store):
    data = bytearray(shard_of(store).read_bytes())
    data[len(data) // 20] ^= 0xFF
    shard_of(store).write_bytes(data)


def cut_short(store):
    data = shard_of(store).read_bytes()
    shard_of(store).write_bytes(data[: len(data) // 2])


def forget_a_patch(store):
    """The index says that patch 2 is absent, as zarr does for a chunk that was deleted."""
    data = shard_of(store).read_bytes()
    index = np.frombuffer(data[-512 * 16 - 4 : -4], "<u8").reshape(512, 2).copy()
    index[2] = 2**64 - 1
    checksum = int(google_crc32c.value(index.tobytes())).to_bytes(4, "little")
    shard_of(store).write_bytes(data[: -512 * 16 - 4] + index.tobytes() + checksum)


def delete_the_shard(store):
    shard_of(store).unlink()


def delete_the_coordinates(store):
    (store / "coords_l0/c/0/0").unlink()


def break_the_description(store):
    (store / "zarr.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "damaged; tile the slide again"),
        (cut_short, "cut short or damaged"),
        (forget_a_patch, "a patch is missing; tile the slide again"),
        (delete_the_shard, "this part of the store is missing; tile the slide again"),
        (delete_the_coordinates, "'coords_l0'"),
        (break_the_description, "damaged zarr.json"),
    ],
)
def test_a_damaged_store_is_a_failure_of_its_slide_alone(extract, stores, tmp_path, damage, message):
    damage(stores / "a.zarr")
    assert extract(stores, "--out", tmp_path / "out") == 1
    assert list(files(tmp_path / "out")) == ["b.h5", "empty.h5"]
    assert list(reasons(tmp_path / "out")) == ["a"] and message in reasons(tmp_path / "out")["a"]
    assert reasons(tmp_path / "out")["a"].startswith("a.zarr")  # and no folder
    assert not list((tmp_path / "out").glob("*.lock")) and not list((tmp_path / "out").glob(".*"))


def test_a_jpeg_that_cannot_be_decoded_names_the_patch(extract, make_store, tissue, tmp_path):
    jpegs = [encode(patch, JPEG_INFO) for patch in tissue(5, 96)]
    jpegs[3] = jpegs[3][:40] + bytes(len(jpegs[3]) - 40)  # the checksum that the shard keeps is right
    make_store(tmp_path / "patches", "bad", tissue(5, 96), jpegs=jpegs)
    make_store(tmp_path / "patches", "good", tissue(5, 96))
    assert extract(tmp_path / "patches", "--out", tmp_path / "out") == 1
    assert "bad.zarr: patch 3 cannot be decoded" in reasons(tmp_path / "out")["bad"]
    assert list(files(tmp_path / "out")) == ["good.h5"]


def test_a_feature_file_that_another_program_has_open_is_named(extract, stores, tmp_path):
    assert extract(stores, "--out", tmp_path / "out") == 0
    code = (
        f"import h5py, time; f = h5py.File({str(tmp_path / 'out/a.h5')!r}, 'r+'); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert extract(stores, "--out", tmp_path / "out") == 1
        other.kill()
    said = "a.h5: open for writing in another program; close it there and run again"
    assert reasons(tmp_path / "out") == {"a": said}


def test_a_slide_table_picks_slides_and_names_those_without_a_store(extract, stores, tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,label\nb,1\nuntiled,0\n")
    assert extract(stores, "--out", tmp_path / "out", "--slides", table) == 1
    assert list(files(tmp_path / "out")) == ["b.h5"]
    assert list(reasons(tmp_path / "out")) == ["untiled"] and "tile-slides" in reasons(tmp_path / "out")["untiled"]


def test_the_parts_of_an_array_job_make_the_whole(extract, stores, tmp_path):
    assert extract(stores, "--out", tmp_path / "whole") == 0
    for part in ("1/2", "2/2"):
        assert extract(stores, "--out", tmp_path / "parts", "--part", part) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "resnet51"], "no such encoder; close to it are resnet50"),
        (["--encoder", "resnet18", "--weights", "none.pth"], "none.pth: no such file"),
        (["--device", "cuda:99"], "--device cuda:99 is not available here"),
        (["--device", "abacus"], "--device abacus is not available here"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--batch-size", "many"], "batch-size"),
        (["--precision", "int8"], "precision"),
        (["--part", "4/3"], "--part 4/3"),
        (["--slides", "none.csv"], "none.csv: no such slide table"),
        (["--colour", "red"], "colour"),
    ],
)
def test_a_wrong_request_ends_with_exit_code_2_before_any_work(extract, stores, tmp_path, capsys, arguments, message):
    assert extract(stores, "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_stores_is_a_wrong_request(extract, tmp_path, capsys):
    wrong = {tmp_path: "make them with tile-slides", tmp_path / "none": "no such folder"}
    (tmp_path / "inner/a.zarr").mkdir(parents=True)
    wrong[tmp_path / "inner/a.zarr"] = "is one patch store; give its folder"
    for folder, message in wrong.items():
        assert extract(folder, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err


def test_killed_in_the_middle_and_run_again_gives_the_same_files(extract, make_store, tissue, tmp_path):
    stores, out = tmp_path / "patches", tmp_path / "out"
    for i in range(6):
        make_store(stores, f"s{i}", tissue(60, 96, seed=i))
    run = [stores, "--out", out, "--encoder", "resnet18", "--weights", "random", "--device", "cpu"]
    code = "from features.cli import main; main()"
    running = subprocess.Popen([sys.executable, "-c", code, *map(str, run)], cwd=ROOT)
    while not list(out.glob("*.h5")) or not list(out.glob("*.lock")):  # one is done, one is being done
        time.sleep(0.01)
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 1 <= len(files(out)) < 6
    for file in out.glob("*.h5"):
        assert len(read_embeddings(file).features) == 60  # what has the final name is whole
    assert extract(*run) == 0
    assert extract(stores, "--out", tmp_path / "whole", "--device", "cpu") == 0
    assert files(out) == files(tmp_path / "whole") and not list(out.glob("*.lock")) and not list(out.glob(".*"))


def test_help_is_quick_and_imports_no_torch():
    script = (
        "import sys; sys.argv = ['extract-features', '--help']\n"
        "try:\n    from features.cli import main; main()\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in ('torch', 'torchvision', 'timm', 'zarr', 'h5py') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("[]") and "--batch-size" in done.stdout


def test_the_commented_defaults_are_the_defaults():
    written = yaml.safe_load((ROOT / "configs/features.yaml").read_text())
    defaults = vars(FeatureConfig())
    assert written == {k: v for k, v in defaults.items() if k in written}
    assert set(written) == set(defaults) - {"part", "scheduler", "overwrite"}


def test_the_printed_config_is_read_again(extract, stores, tmp_path, capsys):
    assert extract(stores, "--out", tmp_path / "out", "--precision", "fp32", "--print_config") == 0
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    assert yaml.safe_load((tmp_path / "my.yaml").read_text())["precision"] == "fp32"
    assert extract(stores, "--out", tmp_path / "out", "--config", tmp_path / "my.yaml") == 0
    assert read_embeddings(tmp_path / "out/a.h5").info.precision == "fp32"
    (tmp_path / "my.yaml").write_text("colour: red\n")
    assert extract(stores, "--out", tmp_path / "out", "--config", tmp_path / "my.yaml") == 2


def test_a_reference_store_gives_the_features_of_a_lossless_one(extract, command, phantom_slide, tmp_path, capsys):
    table = tmp_path / "slides.csv"
    table.write_text(f"slide_id,path\nphantom,{phantom_slide}\n")
    for pixels in ("zstd", "reference"):
        how = ["--pixels", pixels, "--mpp", "0.6", "--patch-px", "128", "--min-tissue", "0.9"]
        assert command("tile-slides", table, "--out", tmp_path / pixels, *how).returncode == 0
    files = {}
    for pixels in ("zstd", "reference"):
        assert extract(tmp_path / pixels, "--out", tmp_path / f"f-{pixels}", "--slides", table) == 0
        files[pixels] = read_embeddings(tmp_path / f"f-{pixels}/phantom.h5")
    assert len(files["zstd"].features) > 10
    assert (files["zstd"].features == files["reference"].features).all()
    assert extract(tmp_path / "reference", "--out", tmp_path / "none") == 1
    assert "--slides TABLE" in (tmp_path / "none/failures.csv").read_text()
    table.write_text(f"slide_id,path\nphantom,{table}\n")
    assert extract(tmp_path / "reference", "--out", tmp_path / "other", "--slides", table) == 1
    assert "not the slide that" in (tmp_path / "other/failures.csv").read_text()


def test_dask_workers_write_the_same_files(extract, stores, tmp_path):
    assert extract(stores, "--out", tmp_path / "here", "--device", "cpu") == 0
    with dask_worker() as address:
        run = (stores, "--out", tmp_path / "there", "--device", "cpu", "--scheduler", address)
        assert extract(*run) == 0
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert (tmp_path / "there/statistics.json").read_text() == (tmp_path / "here/statistics.json").read_text()


def test_a_scale_that_the_network_does_not_know_is_embedded_only_if_asked_for(extract, stores, tmp_path, monkeypatch):
    def trained_at_half(*of):
        return load_encoder(*of).with_preprocessing(input_px=32, mpp=(0.5,))

    monkeypatch.setattr(making, "load_encoder", trained_at_half)
    run = (stores, "--out", tmp_path / "out", "--device", "cpu")
    assert extract(*run) == 1 and not files(tmp_path / "out")
    assert "tile-slides --mpp 0.5 --patch-px 32" in reasons(tmp_path / "out")["a"]
    assert extract(*run, "--input-px", 32) == 0
    found = read_embeddings(tmp_path / "out/a.h5").info
    assert (found.input_px, found.input_mpp, found.mpp) == (32, 1.0, 0.5)


def test_a_resized_patch_is_no_secret(extract, stores, tmp_path, capsys):
    assert extract(stores, "--out", tmp_path / "out", "--device", "cpu", "--input-px", 32) == 0
    assert "patches of 64 px at 0.5 µm/px, resized to 32 px: 1 µm/px" in capsys.readouterr().out

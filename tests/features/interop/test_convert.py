"""`convert-features`: what it asks for, what it refuses, damage that stays alone, resuming."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from foreign_features import FOREIGN, as_clam, as_stamp, as_trident, made, ours, reasons, statuses

from features.feature_file import UNKNOWN, read_embeddings, write_embeddings
from features.interop.config import ConvertConfig
from features.interop.reader import open_features


def test_contradictions_are_refused(convert, tmp_path):
    embeddings = made()
    as_trident(tmp_path / "job", "s", embeddings.features, embeddings.coords_l0)
    flags = ["--to", "slidemil", "--out", tmp_path / "out", "--mpp-l0", 0.25]
    assert convert(tmp_path / "job", *flags, "--patch-size-l0", 512) == 1
    assert "patch_size_l0 is 1024 in the file and 512 in the request" in reasons(tmp_path / "out")["s"]
    as_stamp(tmp_path / "stamp", "s", embeddings.features, embeddings.coords_l0 * 0.25)
    assert convert(tmp_path / "stamp", *flags, "--patch-size-l0", 512) == 1
    assert "256 µm wide, at 0.25 µm per level-0 pixel 1024 pixels, not 512" in reasons(tmp_path / "out")["s"]


@pytest.mark.parametrize("corner", [(-507, 0), (0, -507), (90_000, 0), (0, 70_000)])
def test_a_patch_that_does_not_touch_the_slide_is_none_of_its_patches(convert, tmp_path, corner):
    embeddings = made()
    embeddings.coords_l0[0] = corner
    write_embeddings(tmp_path / "f/s.h5", embeddings)
    assert convert(tmp_path / "f", "--to", "trident", "--out", tmp_path / "out") == 1
    assert "outside a slide" in reasons(tmp_path / "out")["s"]


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "clam", "--features-dtype", "float16"], "CLAM's files and models are float32"),
        (["--to", "stamp", "--mpp-l0", "100"], "--mpp-l0 is 100.0, expected 0.05 to 20"),
        (["--to", "stamp", "--patch-px", "0"], "--patch-px is 0, expected at least 1"),
        (["--to", "stamp", "--patch-um", "-1"], "--patch-um is -1.0, expected µm above 0"),
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
    assert "features hold NaN or infinity" in found["nan"] and "one vector of a whole slide" in found["slide"]
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

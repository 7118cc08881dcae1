"""Slide files carry patient data. None of it may reach an output, whatever the format and wherever it was written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from planted_cohorts import write_features
from skimage.data import immunohistochemistry

import features
import mil
from mil.cli.predict import main as predict
from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.jobs.terminal import Terminal
from tiling.manifest import load_slides
from tiling.store.patches import PatchStore

SECRET = "PlantedSecret"
MAGENTA = (255, 0, 255)  # the colour of every planted label and macro image
TISSUE = np.tile(immunohistochemistry(), (2, 2, 1))  # 1024 × 1024
LABEL = np.full((128, 128, 3), MAGENTA, np.uint8)
TAGS = [(tag, "s", 0, SECRET, True) for tag in (269, 285, 315, 316, 33432)]  # document, page, artist, host, copyright
TILED = {"tile": (128, 128), "compression": "jpeg", "compressionargs": {"level": 95}, "photometric": "rgb"}


def svs(path: Path) -> None:
    fields = "|".join(f"{name} = {SECRET}" for name in ("Filename", "User", "Date", "Time", "Barcode", "ScanScope ID"))
    about = f"Aperio Image Library v10\r\n1024x1024 [0,0 1024x1024] (128x128) JPEG Q=90|AppMag = 20|MPP = 0.5|{fields}"
    with tifffile.TiffWriter(path) as file:
        file.write(TISSUE, description=about, datetime="2001:02:03 04:05:06", extratags=TAGS, metadata=None, **TILED)
        file.write(LABEL, description=f"Aperio\r\nlabel 128x128 {SECRET}", metadata=None, subfiletype=1)
        file.write(LABEL, description=f"Aperio\r\nmacro 128x128 {SECRET}", metadata=None, subfiletype=9)


def tiff(path: Path) -> None:
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        tags = [*TAGS, (700, "B", 0, f"<x:xmpmeta>{SECRET}</x:xmpmeta>".encode(), True)]
        file.write(TISSUE, description=SECRET, software=SECRET, extratags=tags, metadata=None, **scale, **TILED)
        file.write(LABEL, description=SECRET, metadata=None)


def ome_tiff(path: Path) -> None:
    about = {
        "axes": "YXS",
        "Name": SECRET,
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.5,
        "AcquisitionDate": "2001-02-03T04:05:06",
        "Description": SECRET,
        "MapAnnotation": {"Namespace": SECRET, "Patient": SECRET},
    }
    tifffile.imwrite(path, TISSUE, metadata=about, ome=True, **TILED)


def jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x013B], exif[0x010E], exif[0x9C9B] = SECRET, SECRET, SECRET.encode("utf-16-le")
    Image.fromarray(TISSUE).save(path, quality=95, exif=exif, comment=SECRET)


def png(path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Patient", SECRET)
    about.add_itxt("Operator", SECRET, zip=True)
    Image.fromarray(TISSUE).save(path, pnginfo=about)


def dicom(folder: Path, data: Path) -> None:
    """The real series with the patient's name, the dates and the container's label overwritten in their places."""
    folder.mkdir()
    planted = 0
    for source in (data / "slides/dicom_cmu1").glob("*.dcm"):
        content = source.read_bytes()
        for tag in (b"\x10\x00\x10\x00PN", b"\x10\x00\x20\x00LO", b"\x08\x00\x50\x00SH", b"\x40\x00\x12\x05LO"):
            place = content.find(tag) + len(tag)
            if place >= len(tag):
                length = int.from_bytes(content[place : place + 2], "little")
                value = f"{SECRET} ".encode()
                new = len(value).to_bytes(2, "little") + value
                content = content[:place] + new + content[place + 2 + length :]
                planted += 1
        (folder / source.name).write_bytes(content)
    assert planted


def searchable(text: str) -> list[bytes]:
    return [text.encode(), text.encode("utf-16-le"), text.lower().encode(), text.upper().encode()]


@pytest.fixture
def slides(tmp_path, data, write_mrxs):
    folder = tmp_path / f"folder-{SECRET}"
    folder.mkdir()
    svs(folder / "svs.svs")
    tiff(folder / "tiff.tiff")
    ome_tiff(folder / "ome.ome.tiff")
    jpeg(folder / "jpeg.jpg")
    png(folder / "png.png")
    dicom(folder / "dicom", data)
    write_mrxs(folder / "mrxs.mrxs", TISSUE, planted=SECRET, label=LABEL)
    return folder


@pytest.mark.long
def test_no_planted_value_and_no_label_image_reaches_any_output(slides, command, tmp_path):
    table, out = tmp_path / "slides.csv", tmp_path / "out"
    names = ["svs.svs", "tiff.tiff", "ome.ome.tiff", "jpeg.jpg", "png.png", "dicom", "mrxs.mrxs"]
    with table.open("w") as file:
        rows = [(n.split(".")[0], slides / n, "0.5" if n in ("jpeg.jpg", "png.png") else "") for n in names]
        csv.writer(file).writerows([("slide_id", "path", "mpp"), *rows])
    done = command("tile-slides", table, "--out", out / "patches", "--patch-px", "128", "--tissue", "all")
    assert done.returncode == 0, done.stderr
    how = ["--encoder", "resnet18", "--weights", "random"]
    embedded = command("extract-features", out / "patches", "--out", out / "features", *how)
    assert embedded.returncode == 0, embedded.stderr
    summary = json.loads((out / "patches/summary.json").read_text())
    assert summary["counts"] == {"done": len(names)}

    planted = [*searchable(SECRET), b"2001:02:03", b"2001-02-03"]
    for file in [p for p in out.rglob("*") if p.is_file()]:
        content = file.read_bytes()
        assert not [secret for secret in planted if secret in content], file
    for text in (done.stdout, done.stderr, embedded.stdout, embedded.stderr):
        assert SECRET.lower() not in text.lower().replace(str(slides).lower(), "")
    for name in names:
        store = PatchStore(out / f"patches/{name.split('.')[0]}.zarr")
        pictures = [store.thumbnail, *store.read(range(len(store)))]
        assert len(pictures) > 16
        for picture in pictures:
            assert np.abs(picture.astype(int) - MAGENTA).max(-1).min() > 60, name
    for file in out.rglob("*.jpg"):
        assert np.abs(np.asarray(Image.open(file).convert("RGB")).astype(int) - MAGENTA).max(-1).min() > 60, file


def test_the_planted_values_can_be_found_in_the_slides_themselves(slides):
    """Else the search above would prove nothing."""
    for entry in slides.iterdir():
        files = [entry] if entry.is_file() else [p for p in entry.rglob("*") if p.is_file()]
        if entry.suffix in (".mrxs",):
            continue  # its folder has them
        assert any(secret in file.read_bytes() for file in files for secret in searchable(SECRET)), entry


@pytest.fixture
def patient_folder(tmp_path, monkeypatch):
    """A folder whose name would be a part of any sentence, seen from the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path(f"Doe; {SECRET}: 1960, c")
    folder.mkdir()
    return folder


def _texts(out: Path) -> str:
    files = [path for path in out.rglob("*") if path.suffix in (".csv", ".json", ".html")]
    assert {"failures.csv", "summary.json"} <= {path.name for path in files}
    return "".join(path.read_text() for path in files)


def test_why_slides_failed_names_files_and_no_folder(patient_folder, capsys):
    (patient_folder / "S 1.svs").write_bytes(b"not a slide")
    (patient_folder / "S 2.jpg").write_bytes(b"no picture")
    Path("slides.csv").write_text(f'path\n"{patient_folder}/S 1.svs"\n"{patient_folder}/S 2.jpg"\n')
    for name, slides in (("folder", patient_folder), ("table", Path("slides.csv"))):
        outcomes = tile_slides(load_slides(slides), TilingConfig(workers=1), Path(name), Terminal("tile"))
        assert SECRET in outcomes.failed[0].reason and SECRET in capsys.readouterr().err  # the terminal says all
        found = _texts(Path(name))
        assert "Doe" not in found and "S 1.svs: no reader opens it" in found
    stores = Path(f"Doe, {SECRET} (1960)/patches")
    (stores / "S 3.zarr").mkdir(parents=True)
    (stores / "S 3.zarr/zarr.json").write_text("{")
    features.extract(stores, "features", encoder="resnet18", weights="random", device="cpu")
    assert "Doe" not in _texts(Path("features")) and "S 3.zarr: damaged zarr.json" in _texts(Path("features"))


def test_why_a_run_left_slides_out_names_files_and_no_folder(patient_folder):
    folder, table = patient_folder, Path("labels.csv")
    rng = np.random.default_rng(0)
    for i in range(12):
        write_features(folder, f"s{i}", rng.normal(size=(5, 4)))
    rows = [(f"s{i}", ("normal", "tumour")[i % 2]) for i in range(12)]
    table.write_text("\n".join(["slide_id,y", *(",".join(row) for row in rows)]))
    (folder / "s0.h5").write_bytes(b"cut")
    run = mil.train(folder, table, "y", "run", folds=2, epochs=1, device="cpu", bootstrap=100)
    with pytest.raises(SystemExit) as ended:
        predict(["run", str(folder), "--out", "predictions.csv", "--device", "cpu"])
    assert ended.value.code == 1
    for file in (run.path / "failures.csv", run.report, Path("predictions.failures.csv"), Path("predictions.csv")):
        assert "Doe" not in file.read_text()
    assert "s0.h5: not a readable HDF5 file" in (run.path / "failures.csv").read_text()
    assert "s0.h5: not a readable HDF5 file" in Path("predictions.failures.csv").read_text()

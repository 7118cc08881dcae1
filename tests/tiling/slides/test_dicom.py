"""DICOM series that OpenSlide refuses, made of the real series by other compressions, colours and layouts."""

import copy
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tiling import tile
from tiling.jobs.errors import SlideError
from tiling.slides import opening
from tiling.slides.dicom import DicomReader
from tiling.slides.opening import open_slide
from tiling.store.patches import PatchStore

ACROSS, DOWN, SIDE = 5, 4, 240  # frames of the upper left of the slide
WIDTH, HEIGHT = 1150, 900  # the last frames are cut


@pytest.fixture(scope="module")
def original(data):
    """The real slide's upper left: its data set without pixels, and the frames (20, 240, 240, 3) as they decode."""
    files = [dcmread(file) for file in sorted((data / "slides/dicom_cmu1").glob("*.dcm"))]
    (slide,) = [file for file in files if "VOLUME" in file.ImageType]
    frames = list(generate_frames(slide.PixelData, number_of_frames=130))
    chosen = [frames[10 * row + column] for row in range(DOWN) for column in range(ACROSS)]
    del slide.PixelData
    return slide, np.stack([simplejpeg.decode_jpeg(frame, "RGB", fastupsample=False) for frame in chosen])


def picture(frames, across=ACROSS):
    rows = [np.concatenate(frames[i : i + across], axis=1) for i in range(0, len(frames), across)]
    return np.concatenate(rows)[:HEIGHT, :WIDTH]


def write(path, template, frames, how, **changes):
    """One file of a series with the frames as `how` = (transfer syntax, colours, encoder) stores them."""
    syntax, colours, encode = how
    made = copy.deepcopy(template)
    made.file_meta.TransferSyntaxUID, made.PhotometricInterpretation = syntax, colours
    made.TotalPixelMatrixColumns, made.TotalPixelMatrixRows, made.NumberOfFrames = WIDTH, HEIGHT, len(frames)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for name, value in changes.items():
        setattr(made, name, value)
    encoded = [encode(frame) for frame in frames]
    made.PixelData = encapsulate(encoded) if syntax.is_encapsulated else b"".join(encoded)
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", syntax.is_encapsulated
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path.parent


def ybr(rgb):
    """ITU-R BT.601 as in JFIF, by the formula."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.clip(np.rint(np.stack([y, (b - y) / 1.772 + 128, (r - y) / 1.402 + 128], -1)), 0, 255).astype(np.uint8)


def jpeg_2000(frame, transform):
    return imagecodecs.jpeg2k_encode(frame, reversible=True, mct=transform, codecformat="j2k")


def rle(frame):
    """PackBits by its own rule, as literal runs: a segment for each colour (DICOM PS3.5, annex G)."""
    segments = []
    for channel in np.moveaxis(frame, -1, 0):
        raw = channel.tobytes()
        runs = (raw[i : i + 128] for i in range(0, len(raw), 128))
        segments.append(b"".join(bytes([len(run) - 1]) + run for run in runs))
        segments[-1] += b"\0" * (len(segments[-1]) % 2)
    starts = [64 + sum(map(len, segments[:i])) for i in range(3)]
    return struct.pack("<16I", 3, *starts, *[0] * 12) + b"".join(segments)


RCT = (JPEG2000Lossless, "YBR_RCT", lambda f: jpeg_2000(f, True))
LOSSLESS = {
    "JPEG 2000": RCT,
    "JPEG 2000 without transform": (JPEG2000Lossless, "RGB", lambda f: jpeg_2000(f, False)),
    "JPEG 2000 that says YBR_FULL and transforms": (JPEG2000Lossless, "YBR_FULL", lambda f: jpeg_2000(f, True)),
    "RLE": (RLELossless, "RGB", rle),
    "JPEG-LS": (JPEGLSLossless, "RGB", imagecodecs.jpegls_encode),
    "uncompressed": (ExplicitVRLittleEndian, "RGB", lambda f: f.tobytes()),
}
YBR_FULL = {
    "JPEG 2000": (JPEG2000Lossless, "YBR_FULL", lambda f: jpeg_2000(ybr(f), False)),
    "RLE": (RLELossless, "YBR_FULL", lambda f: rle(ybr(f))),
    "JPEG": (JPEGBaseline8Bit, "YBR_FULL", lambda f: simplejpeg.encode_jpeg(f, 95, "RGB", "444")),
}
OPENSLIDE_TOO = ("JPEG 2000", "JPEG 2000 without transform", "uncompressed")


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_series_have_the_source_s_pixels(original, tmp_path, name):
    template, frames = original
    folder = write(tmp_path / "s/a.dcm", template, frames, LOSSLESS[name])
    slide = open_slide(folder)
    assert slide.backend == ("openslide" if name in OPENSLIDE_TOO else "wsidicom")
    for reader in (slide, DicomReader(folder / "a.dcm")):
        assert reader.level_sizes == ((WIDTH, HEIGHT),) and reader.mpp == pytest.approx((0.499, 0.499))
        assert reader.mpp_source == "DICOM" and reader.downsamples == (1,)
        assert np.array_equal(reader.read(0, 0, 0, WIDTH, HEIGHT), picture(frames))
        around = reader.read(0, -5, 500, WIDTH + 20, 30)
        assert (around[:, :5] == 255).all() and (around[:, -15:] == 255).all()
        assert np.array_equal(around[:, 5:-15], picture(frames)[500:530])
        reader.close()


@pytest.mark.parametrize("name", YBR_FULL)
def test_ybr_full_becomes_rgb(original, tmp_path, name):
    """Within the rounding of the colours there and back, and for JPEG its error at quality 95."""
    template, frames = original
    folder = write(tmp_path / "s/a.dcm", template, frames, YBR_FULL[name])
    slide = open_slide(folder)
    assert slide.backend == "wsidicom"
    off = np.abs(slide.read(0, 0, 0, WIDTH, HEIGHT).astype(int) - picture(frames))
    assert off.mean() < (1 if name == "JPEG" else 0.4) and (name == "JPEG" or off.max() <= 2)
    if name == "JPEG":
        decoded = [simplejpeg.decode_jpeg(YBR_FULL[name][2](f), "RGB", fastupsample=False) for f in frames]
        assert np.array_equal(slide.read(0, 0, 0, WIDTH, HEIGHT), picture(decoded))


def test_tiles_that_were_not_scanned_are_white(original, tmp_path):
    template, frames = original
    left_out = (0, 7, 19)
    kept = [i for i in range(len(frames)) if i not in left_out]
    places = []
    for i in kept:
        place, item = Dataset(), Dataset()
        place.ColumnPositionInTotalImagePixelMatrix = i % ACROSS * SIDE + 1
        place.RowPositionInTotalImagePixelMatrix = i // ACROSS * SIDE + 1
        place.XOffsetInSlideCoordinateSystem = place.YOffsetInSlideCoordinateSystem = 0.0
        place.ZOffsetInSlideCoordinateSystem = 0.0
        item.PlanePositionSlideSequence = [place]
        places.append(item)
    how = {"DimensionOrganizationType": "TILED_SPARSE", "PerFrameFunctionalGroupsSequence": places}
    folder = write(tmp_path / "s/a.dcm", template, frames[kept], YBR_FULL["JPEG 2000"], **how)
    expected = frames.copy()
    expected[list(left_out)] = 255
    found = open_slide(folder).read(0, 0, 0, WIDTH, HEIGHT)
    assert np.abs(found.astype(int) - picture(expected)).max() <= 2
    assert (found[:SIDE, :SIDE] == 255).all() and (found[SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE] == 255).all()


def pyramid(original, folder, finest=LOSSLESS["JPEG-LS"]):
    """Two levels in two files; the coarser has every second pixel. Returns the coarser one's picture."""
    template, frames = copy.deepcopy(original[0]), original[1]
    template.SeriesInstanceUID = generate_uid()
    write(folder / "b.dcm", template, frames, finest)
    half = picture(frames)[::2, ::2]
    padded = np.pad(half, ((0, -half.shape[0] % SIDE), (0, -half.shape[1] % SIDE), (0, 0)), constant_values=255)
    rows, columns = padded.shape[0] // SIDE, padded.shape[1] // SIDE
    tiles = padded.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    shared = copy.deepcopy(template.SharedFunctionalGroupsSequence)
    shared[0].PixelMeasuresSequence[0].PixelSpacing = [0.000998, 0.000998]
    size = {"TotalPixelMatrixColumns": half.shape[1], "TotalPixelMatrixRows": half.shape[0]}
    write(folder / "a.dcm", template, tiles, LOSSLESS["JPEG-LS"], SharedFunctionalGroupsSequence=shared, **size)
    return half


def test_levels_and_other_files_of_the_folder(original, data, tmp_path):
    half = pyramid(original, tmp_path / "s")
    for i, file in enumerate((data / "slides/dicom_cmu1").glob("*.dcm")):  # another series, with label and overview
        shutil.copy(file, tmp_path / f"s/{i}.dcm")
    (tmp_path / "s/notes.txt").write_text("not DICOM")
    for name in ("a.dcm", "b.dcm"):
        slide = open_slide(tmp_path / "s" / name)
        assert slide.level_sizes == ((WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2)) and slide.downsamples == (1, 2)
        assert slide.mpp == pytest.approx((0.499, 0.499))
        assert np.array_equal(slide.read(1, 0, 0, WIDTH // 2, HEIGHT // 2), half)
        assert np.array_equal(slide.read(0, 0, 0, WIDTH, HEIGHT), picture(original[1]))


def test_a_level_that_cannot_be_read_is_not_passed_over(original, tmp_path):
    pyramid(original, tmp_path / "s", (ExplicitVRLittleEndian, "YBR_FULL", lambda f: ybr(f).tobytes()))
    said = "wsidicom: cannot read 1 of 2 files of the series, YBR_FULL in Explicit VR Little Endian.*convert it to OME"
    with pytest.raises(SlideError, match=said) as error:
        open_slide(tmp_path / "s")
    assert str(tmp_path / "s/a.dcm") in str(error.value)


def test_what_neither_reads(original, tmp_path):
    template, frames = original
    jpegls = LOSSLESS["JPEG-LS"]
    write(tmp_path / "ls/a.dcm", template, frames, (JPEGLSLossless, "YBR_FULL", lambda f: jpegls[2](ybr(f))))
    with pytest.raises(SlideError, match=r"wsidicom: .*found YBR_FULL in JPEG-LS .*convert it to OME-TIFF"):
        open_slide(tmp_path / "ls")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.dcm").write_text("no DICOM")
    with pytest.raises(SlideError, match=r"a.dcm: no reader opens it: OpenSlide: .*; wsidicom: a.dcm is damaged or no"):
        open_slide(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideError, match=r"a folder without .dcm files; only a DICOM series or an OME-Zarr"):
        open_slide(tmp_path / "empty")


def test_a_damaged_tile_is_told(original, tmp_path):
    template, frames = original
    encode = LOSSLESS["JPEG-LS"][2]
    cut = iter(range(len(frames)))
    how = (JPEGLSLossless, "RGB", lambda f: encode(f)[:400] if next(cut) == 6 else encode(f))
    slide = open_slide(write(tmp_path / "s/a.dcm", template, frames, how))
    assert np.array_equal(slide.read(0, 0, 0, SIDE, SIDE), frames[0])
    with pytest.raises(SlideError, match=r"a.dcm: damaged tile 1, 1 of level 0"):
        slide.read(0, SIDE, SIDE, SIDE, SIDE)


def test_threads_read_at_once(original, tmp_path):
    template, frames = original
    slide = open_slide(write(tmp_path / "s/a.dcm", template, frames, LOSSLESS["JPEG-LS"]))
    corners = [(x, y) for x in range(0, 1000, 97) for y in range(0, 800, 71)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda corner: slide.read(0, *corner, 90, 90), corners))
    for (x, y), region in zip(corners, found, strict=True):
        assert np.array_equal(region, picture(frames)[y : y + 90, x : x + 90])


def test_without_the_extra_the_remedy_is_told(original, tmp_path, monkeypatch):
    template, frames = original
    folder = write(tmp_path / "s/a.dcm", template, frames, YBR_FULL["JPEG"])
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SlideError, match=r"Unsupported photometric .*pip install 'slidemil\[dicom\]'") as error:
        open_slide(folder)
    assert str(folder) in str(error.value)
    folder = write(tmp_path / "t/a.dcm", template, frames, RCT)
    assert open_slide(folder).backend == "openslide"


def test_tiles_of_a_series(original, tmp_path):
    template, frames = original
    write(tmp_path / "slides/s/a.dcm", template, frames, LOSSLESS["JPEG-LS"])
    how = {"mpp": "native", "patch_px": 256, "tissue": "all", "grid": "origin", "pixels": "zstd", "workers": 1}
    assert tile(tmp_path / "slides", tmp_path / "out", **how).counts == {"done": 1}
    store = PatchStore(tmp_path / "out/s.zarr")
    assert store.info.backend == "wsidicom" and store.info.mpp_source == "DICOM"
    for (x, y), patch in zip(store.coords_l0, store.read(np.arange(len(store.coords_l0))), strict=True):
        assert np.array_equal(patch, picture(frames)[y : y + 256, x : x + 256])

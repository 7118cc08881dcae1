"""CZI slides, written byte by byte and by ZEISS's own library, through OpenSlide and through the extra's reader."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from czi_files import JPEG_XR, UNCOMPRESSED, ZSTD, write_czi
from pylibCZIrw import czi

from tiling import tile
from tiling.jobs.errors import SlideError
from tiling.manifest import load_slides
from tiling.slides import opening
from tiling.slides.czi import CziReader
from tiling.slides.opening import open_slide
from tiling.store.patches import PatchStore

PICTURE = np.random.default_rng(0).integers(0, 256, (304, 400, 3), dtype=np.uint8)
LEVELS = [PICTURE, PICTURE[::2, ::2], PICTURE[::4, ::4]]  # what is read is known exactly


def write_by_zeiss(path, tiles, compression="zstd1:ExplicitLevel=1", mpp=0.25):
    """tiles: (x, y, plane, scene, RGB or grey pixels)."""
    with czi.create_czi(str(path), compression_options=compression) as file:
        for x, y, plane, scene, pixels in tiles:
            stored = np.ascontiguousarray(pixels[..., ::-1])
            assert file.write(stored, location=(x, y), plane=plane, scene=scene)
        if mpp:
            file.write_metadata(scale_x=mpp * 1e-6, scale_y=mpp * 1e-6)
    return path


@pytest.mark.parametrize("compression", [UNCOMPRESSED, ZSTD, JPEG_XR])
def test_pixels_of_every_level_and_scale(tmp_path, compression):
    path = write_czi(tmp_path / "s.czi", LEVELS, 0.499, compression)
    slide = open_slide(path)
    assert slide.backend == ("pylibczirw" if compression == JPEG_XR else "openslide")
    for reader in (slide, CziReader(path)):
        assert reader.level_sizes == ((400, 304), (200, 152), (100, 76)) and reader.downsamples == (1, 2, 4)
        assert reader.mpp == pytest.approx((0.499, 0.499), rel=1e-9)
        for level, picture in enumerate(LEVELS):
            h, w = picture.shape[:2]
            assert np.array_equal(reader.read(level, 0, 0, w, h), picture)
            around = reader.read(level, -3, 21, w + 10, 50)
            assert (around[:, :3] == 255).all() and (around[:, -7:] == 255).all()
            assert np.array_equal(around[:, 3:-7], picture[21:71])
        halves = PICTURE[100:200, 40:240].reshape(50, 2, 100, 2, 3).mean((1, 3))
        assert np.abs(reader.read(0, 20, 50, 100, 50, 2) - halves).max() <= 0.5
        reader.close()


@pytest.mark.parametrize(("side", "first"), [(100, 0), (265, 264), (326, 213)])
def test_seams_of_tiles_lie_on_the_pixel(tmp_path, side, first):
    """libCZI's own scaling puts some tiles one pixel too wide over their neighbours."""
    picture = np.random.default_rng(1).integers(0, 256, (2400, 3200, 3), dtype=np.uint8)
    levels = [picture[:: 1 << i, :: 1 << i] for i in range(3)]
    slide = CziReader(write_czi(tmp_path / "s.czi", levels, 0.5, UNCOMPRESSED, side, first))
    for level, expected in enumerate(levels):
        height, width = expected.shape[:2]
        assert np.array_equal(slide.read(level, 0, 0, width, height), expected)
        assert np.array_equal(slide.read(level, 333, 211, 400, 333), expected[211:544, 333:733])


@pytest.mark.parametrize("compression", ["uncompressed:", "zstd0:ExplicitLevel=1", "zstd1:ExplicitLevel=1"])
def test_files_of_zeiss_s_own_library(tmp_path, compression):
    """They name planes in z and time, which OpenSlide refuses; what lies between tiles and scenes is white."""
    plane = {"Z": 0, "T": 0, "C": 0}
    tiles = [(-50, 20, plane, 0, PICTURE[:100, :100]), (150, 60, plane, 1, PICTURE[100:250, 100:300])]
    slide = open_slide(write_by_zeiss(tmp_path / "s.czi", tiles, compression))
    assert slide.backend == "pylibczirw" and slide.level_sizes == ((400, 190),) and slide.mpp_source == "CZI metadata"
    assert slide.mpp == pytest.approx((0.25, 0.25))
    expected = np.full((190, 400, 3), 255, np.uint8)
    expected[:100, :100], expected[40:190, 200:400] = PICTURE[:100, :100], PICTURE[100:250, 100:300]
    assert np.array_equal(slide.read(0, 0, 0, 400, 190), expected)


def test_what_is_refused_says_what_was_found(tmp_path):
    grey, plane = PICTURE[:64, :64, :1], {"Z": 0, "C": 0}
    colour = PICTURE[:64, :64]
    for name, tiles, said in (
        ("grey", [(0, 0, plane, 0, grey)], "pylibCZIrw: found 1 channels of Gray8; expected 8-bit RGB"),
        ("deep", [(0, 0, plane, 0, colour.astype(np.uint16))], "found 1 channels of Bgr48"),
        ("channels", [(0, 0, {"C": c}, 0, colour) for c in (0, 1)], "found 2 channels of Bgr24"),
        ("planes", [(0, 0, {"Z": z}, 0, colour) for z in (0, 1)], "found planes: .*2 of Z.*; expected one"),
    ):
        path = write_by_zeiss(tmp_path / f"{name}.czi", tiles)
        with pytest.raises(SlideError, match=said) as error:
            open_slide(path)
        assert str(path) in str(error.value) and "OpenSlide: " in str(error.value)
    assert open_slide(write_by_zeiss(tmp_path / "s.czi", [(0, 0, plane, 0, colour)], mpp=None)).mpp is None


def test_damage_is_told(tmp_path):
    path = write_czi(tmp_path / "s.czi", LEVELS, 0.5, JPEG_XR)
    content = bytearray(path.read_bytes())
    second = content.index(b"ZISRAWSUBBLOCK", content.index(b"ZISRAWSUBBLOCK") + 1) + 32 + 256
    content[second + 100 : second + 2000] = bytes(1900)
    path.write_bytes(content)
    slide = open_slide(path)
    assert np.array_equal(slide.read(0, 0, 0, 128, 128), PICTURE[:128, :128])
    with pytest.raises(SlideError, match=r"s.czi: damaged at level 0, x 130, y 0"):
        slide.read(0, 130, 0, 100, 100)
    for length in (0, 100, 3000, len(content) - 500):
        path.write_bytes(content[:length])
        with pytest.raises(SlideError, match=r"s\.czi: "):
            open_slide(path)


def test_threads_read_at_once(tmp_path):
    slide = open_slide(write_czi(tmp_path / "s.czi", LEVELS, 0.5, JPEG_XR))
    corners = [(x, y) for x in range(0, 340, 23) for y in range(0, 240, 19)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda corner: slide.read(0, *corner, 60, 60), corners))
    for (x, y), region in zip(corners, found, strict=True):
        assert np.array_equal(region, PICTURE[y : y + 60, x : x + 60])


def test_without_the_extra_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    assert open_slide(write_czi(tmp_path / "z.czi", LEVELS, 0.5, ZSTD)).backend == "openslide"
    said = r"x.czi: OpenSlide: JPEG XR compression is not supported; .*pip install 'slidemil\[czi\]'"
    with pytest.raises(SlideError, match=said):
        open_slide(write_czi(tmp_path / "x.czi", LEVELS, 0.5, JPEG_XR))


def test_tiles_of_a_slide(tmp_path):
    write_czi(tmp_path / "s.czi", LEVELS, 0.25, JPEG_XR)
    how = {"mpp": 0.5, "patch_px": 64, "tissue": "all", "grid": "origin", "pixels": "zstd", "workers": 1}
    assert [row.slide_id for row in load_slides(tmp_path)] == ["s"]
    assert tile(tmp_path, tmp_path / "out", **how).counts == {"done": 1}
    store = PatchStore(tmp_path / "out/s.zarr")
    assert store.info.backend == "pylibczirw" and store.info.level == 1 and len(store.coords_l0) == 6
    for (x, y), patch in zip(store.coords_l0 // 2, store.read(np.arange(6)), strict=True):
        assert np.array_equal(patch, LEVELS[1][y : y + 64, x : x + 64])


@pytest.mark.parametrize("name", ["s.vsi", "s.isyntax", "s.i2syntax"])
def test_formats_that_are_not_read_say_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 100)
    assert [row.path.name for row in load_slides(tmp_path)] == [name]  # not passed over
    with pytest.raises(SlideError, match=r"s\..* is not read; (convert|export) it"):
        open_slide(tmp_path / name)

import zlib

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from skimage.data import astronaut

from tiling.slides.opening import open_slide
from tiling.slides.openslide import OpenSlideReader
from tiling.tissue.thumbnail import read_thumbnail

PHOTOGRAPH = astronaut()
REGION_MAX = 1 << 24  # px; OpenSlide needs four bytes for each, and Pillow as many for every copy


@pytest.fixture(scope="module")
def one_level(tmp_path_factory):
    """An Aperio slide of one level that OpenSlide reads, 6,000 × 5,000 px, and its pixels. Two tiles were left out."""
    path = tmp_path_factory.mktemp("one") / "one.svs"
    tiles = [np.ascontiguousarray(PHOTOGRAPH[y : y + 256, x : x + 256]) for y in (0, 256) for x in (0, 256)]
    packed = [zlib.compress(tile.tobytes()) for tile in tiles]
    rows, columns = 20, 24
    kinds = [(7 * row + column) % 4 for row in range(rows) for column in range(columns)]
    missing = (3, 30)
    with tifffile.TiffWriter(path) as file:
        file.write(
            (b"" if i in missing else packed[kind] for i, kind in enumerate(kinds)),
            shape=(5000, 6000, 3), dtype="uint8", tile=(256, 256), compression="zlib", photometric="rgb",
            metadata=None, description="Aperio Image Library v10.0.51\r\n6000x5000 (256x256) Q=90|MPP = 0.25",
        )  # fmt: skip
    white = np.full((256, 256, 3), 255, np.uint8)
    drawn = np.stack([white if i in missing else tiles[kind] for i, kind in enumerate(kinds)])
    whole = drawn.reshape(rows, columns, 256, 256, 3).swapaxes(1, 2).reshape(rows * 256, columns * 256, 3)
    return path, whole[:5000, :6000]


@pytest.mark.parametrize("wanted", [32, 8, 3])
def test_a_slide_of_one_level_is_read_in_small_regions(one_level, monkeypatch, wanted):
    path, pixels = one_level
    asked = []
    read_region = openslide.OpenSlide.read_region

    def noted(self, corner, level, size):
        asked.append(size[0] * size[1])
        return read_region(self, corner, level, size)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", noted)
    slide = open_slide(path)
    assert isinstance(slide, OpenSlideReader) and slide.level_sizes == ((6000, 5000),)
    thumbnail = read_thumbnail(slide, wanted)
    assert max(asked) <= REGION_MAX
    assert thumbnail.downsample == wanted
    reduction = {32: 8, 8: 4, 3: 1}[wanted]
    mean = np.asarray(Image.fromarray(pixels).reduce(reduction).reduce(wanted // reduction))
    assert (thumbnail.pixels == mean).all()
    inside = pixels[: 5000 // wanted * wanted, : 6000 // wanted * wanted]
    exact = inside.reshape(5000 // wanted, wanted, 6000 // wanted, wanted, 3).mean((1, 3))
    assert np.abs(thumbnail.pixels[: len(exact), : exact.shape[1]] - exact).max() <= 1


@pytest.mark.parametrize("kind", ["strips", "png"])
def test_an_image_that_cannot_be_decoded_smaller_is_read_in_small_regions(one_level, tmp_path, monkeypatch, kind):
    """Strips of a width that 8 does not divide, and a PNG that is in memory as a whole."""
    pixels = one_level[1][:, :5999]
    path = tmp_path / ("x.png" if kind == "png" else "x.tif")
    if kind == "png":
        Image.fromarray(pixels).save(path, compress_level=1)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=64)
    slide = open_slide(path)
    asked = []
    read = type(slide).read

    def noted(self, level, x, y, width, height, reduction=1):
        asked.append(width * height)
        return read(self, level, x, y, width, height, reduction)

    monkeypatch.setattr(type(slide), "read", noted)
    thumbnail = read_thumbnail(slide, 32)
    assert len(asked) > 1 and max(asked) <= REGION_MAX
    padded = np.pad(pixels, ((0, 0), (0, 1), (0, 0)), constant_values=255)
    assert (thumbnail.pixels == np.asarray(Image.fromarray(padded).reduce(8).reduce(4))).all()

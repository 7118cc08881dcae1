import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from skimage.data import astronaut

from tiling.jobs.errors import SlideError
from tiling.slides.opening import open_slide

PHOTOGRAPH = astronaut()
ROOT = Path(__file__).parents[3]


def test_a_slide_of_jpeg_and_png_pixels(tmp_path):
    pixels = PHOTOGRAPH[:200, :301]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95, dpi=(72, 72))
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    alpha[:50, :50, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "a.png")
    for name in ("x.png", "x.jpg"):
        slide = open_slide(tmp_path / name)
        truth = np.asarray(Image.open(tmp_path / name))
        assert slide.level_sizes == ((301, 200),) and slide.mpp is None and slide.backend == "image"
        assert (slide.read(0, 17, 30, 100, 90) == truth[30:120, 17:117]).all()
        assert (slide.read(0, 290, 0, 20, 10)[:, 11:] == 255).all()
        halved = truth[:, :300].reshape(100, 2, 150, 2, 3).mean((1, 3))
        assert np.abs(slide.read(0, 0, 0, 150, 100, 2) - halved).max() <= 0.51
    assert (open_slide(tmp_path / "a.png").read(0, 0, 0, 50, 50) == 255).all()
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    with pytest.raises(SlideError, match="mode CMYK"):
        open_slide(tmp_path / "cmyk.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:30_000])
    with pytest.raises(SlideError, match="damaged"):
        open_slide(tmp_path / "cut.png").read(0, 0, 0, 10, 10)


def test_what_is_transparent_in_a_png_shows_white(tmp_path):
    """Pixel by pixel, of the three ways that a PNG has: a channel, a table beside the palette, one colour."""
    rng = np.random.default_rng(1)
    pixels = rng.choice(np.array([[10, 20, 30], [200, 100, 0], [9, 255, 77]], np.uint8), (60, 50))
    alpha = rng.integers(0, 256, (60, 50, 1), dtype=np.uint8)
    blended = pixels * (alpha / 255) + 255 * (1 - alpha / 255)
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "rgba.png")
    assert np.abs(open_slide(tmp_path / "rgba.png").read(0, 0, 0, 50, 60) - blended).max() <= 1
    keyed = np.where((pixels == (200, 100, 0)).all(2, keepdims=True), 255, pixels)
    Image.fromarray(pixels).save(tmp_path / "rgb.png", transparency=(200, 100, 0))
    assert (open_slide(tmp_path / "rgb.png").read(0, 0, 0, 50, 60) == keyed).all()
    palette = Image.fromarray(pixels).quantize(3)
    index = next(i for i in range(3) if palette.getpalette()[3 * i : 3 * i + 3] == [200, 100, 0])
    palette.save(tmp_path / "p.png", transparency=index)
    assert (open_slide(tmp_path / "p.png").read(0, 0, 0, 50, 60) == keyed).all()


@pytest.mark.parametrize(("name", "kind"), [("a.png", PngImageFile), ("a.jpg", JpegImageFile)])
def test_pillows_limit_holds_for_all_others_while_ours_is_higher(tmp_path, monkeypatch, name, kind):
    """It is one for the whole process, other threads among it."""
    Image.fromarray(PHOTOGRAPH).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    limits, opening = [], kind._open
    monkeypatch.setattr(kind, "_open", lambda image: [limits.append(Image.MAX_IMAGE_PIXELS), opening(image)][1])
    slide = open_slide(tmp_path / name)
    assert slide.read(0, 0, 0, 512, 512).shape == PHOTOGRAPH.shape
    assert limits == [1000] and Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / name)


def test_no_module_touches_pillows_limit():
    sources = [path for room in ("tiling", "features", "mil") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 100
    assert [path for path in sources if "MAX_IMAGE_PIXELS" in path.read_text()] == []


def test_an_image_too_large_to_be_decoded_is_refused_by_its_header(tmp_path):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    for side, refused in ((2**14, False), (2**14 + 1, True)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
        if refused:
            with pytest.raises(SlideError, match="16385 × 16385 px is too large to be read at once"):
                open_slide(tmp_path / "x.png")
        else:
            assert open_slide(tmp_path / "x.png").level_sizes == ((side, side),)


def test_what_begins_as_an_image_and_is_none_is_refused(tmp_path):
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a"):
        (tmp_path / "x.png").write_bytes(start + b"no more than this")
        with pytest.raises(SlideError, match=r"no reader opens it: .*Pillow: "):
            open_slide(tmp_path / "x.png")

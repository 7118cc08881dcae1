import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from tiling.jobs.errors import SlideError
from tiling.slides.opening import open_slide

PHOTOGRAPH = astronaut()


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


def test_pillows_limit_is_left_as_it_was(tmp_path):
    Image.fromarray(PHOTOGRAPH).save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    open_slide(tmp_path / "a.png").close()
    assert limit == Image.MAX_IMAGE_PIXELS and limit

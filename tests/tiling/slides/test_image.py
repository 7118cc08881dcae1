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


def test_pillows_limit_is_left_as_it_was(tmp_path):
    Image.fromarray(PHOTOGRAPH).save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    open_slide(tmp_path / "a.png").close()
    assert limit == Image.MAX_IMAGE_PIXELS and limit

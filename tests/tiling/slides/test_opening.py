import numpy as np
import pytest
import tifffile

from tiling.jobs.errors import SlideError
from tiling.slides.opening import open_slide


def test_what_is_no_slide_is_refused_with_both_reasons(data, tmp_path):
    (tmp_path / "text.svs").write_text("this is not a slide")
    (tmp_path / "empty.svs").write_bytes(b"")
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((64, 64), np.uint16))
    for path, said in [
        (data / "slides/broken.svs", "OpenSlide: .*tifffile: "),
        (tmp_path / "text.svs", "no reader opens it"),
        (tmp_path / "empty.svs", "empty"),
        (tmp_path / "grey.tif", "1 samples of uint16"),
        (tmp_path / "missing.svs", "no such file"),
    ]:
        with pytest.raises(SlideError, match=said) as error:
            open_slide(path)
        assert str(path) in str(error.value)

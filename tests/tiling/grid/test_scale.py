import math

import pytest

from tiling.grid.scale import choose_scale
from tiling.jobs.errors import SlideError


@pytest.mark.parametrize(
    ("mpp_l0", "target", "level", "reduction", "size_l0", "obtained"),
    [
        (0.25, 0.25, 0, 1, 512, 0.25),
        (0.25, 0.5, 0, 2, 1024, 0.5),
        (0.25, 1.0, 1, 1, 2048, 1.0),  # a stored level comes before a reduced one
        (0.25, 2.0, 1, 2, 4096, 2.0),
        (0.2525, 0.25, 0, 1, 512, 0.2525),  # within 2 %: as it is, and what was obtained is recorded
        (0.2525, 0.5, 0, 2, 1024, 0.505),
        (0.265, 0.25, None, 1, None, None),  # 6 % coarser: nothing is upsampled
        (0.265, 0.5, 0, 1, 966, 966 / 512 * 0.265),
        (0.246, 0.25, 0, 1, 512, 0.246),
        (0.2440, 0.25, 0, 1, 525, 525 / 512 * 0.244),  # 2.4 % finer: resampled
        (0.499, 0.5, 0, 1, 512, 0.499),
        (0.25, 3.0, 1, 1, 6144, 3.0),
        (0.25, 0.7, 0, 1, 1434, 1434 / 512 * 0.25),
        (0.08, 0.26, 0, 1, 1664, 0.26),
        (0.05, 0.22, 1, 1, 2253, 2253 / 512 * 0.05),
        (0.25, 9.0, 2, 1, 18432, 9.0),
        (0.25, 19.0, 2, 2, 38912, 19.0),  # half of level 2, then averaged by 2.4
    ],
)
def test_scale_is_micrometres_not_a_bucket(picture, mpp_l0, target, level, reduction, size_l0, obtained):
    slide = picture(mpp=mpp_l0)
    if level is None:
        with pytest.raises(SlideError, match="nothing is upsampled"):
            choose_scale(slide, target, 512, 0)
        return
    scale = choose_scale(slide, target, 512, 0)
    assert (scale.level, scale.reduction, scale.patch_size_l0) == (level, reduction, size_l0)
    assert scale.mpp == pytest.approx(obtained, rel=1e-12)


def test_scale_that_cannot_be_true_is_refused_with_the_remedy(picture):
    for mpp, said in [
        ((0.00499, 0.00499), "0.00499"),
        ((896, 896), "896"),
        ((0.25, 0.27), "not square"),
        (None, "not say"),
    ]:
        slide = picture()
        slide.mpp = mpp
        with pytest.raises(SlideError, match=said) as error:
            choose_scale(slide, 0.5, 512, 0)
        assert "column `mpp`" in str(error.value) and "--mpp native" in str(error.value)
        assert choose_scale(slide, 0.5, 512, 0, mpp_table=0.25).mpp_source == "slide table"
        native = choose_scale(slide, "native", 512, 0)
        assert (native.level, native.patch_size_l0) == (0, 512) and math.isnan(native.mpp_l0)

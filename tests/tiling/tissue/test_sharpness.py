import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace
from skimage.data import immunohistochemistry

from tiling.tissue.sharpness import sharpness


def test_sharpness_is_the_mean_square_of_scipys_laplacian_and_so_its_variance():
    patch = immunohistochemistry()[:300, :200]
    expected = laplace(patch[..., 1].astype(float))[1:-1, 1:-1]
    assert sharpness(patch) == pytest.approx((expected**2).mean(), rel=1e-5)
    assert sharpness(patch) == pytest.approx(expected.var(), rel=1e-4)


def test_blur_lowers_it_and_glass_has_none():
    patch = immunohistochemistry()
    values = [sharpness(gaussian_filter(patch, (sigma, sigma, 0))) for sigma in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 20 * values[2]
    assert sharpness(np.full((64, 64, 3), 240, np.uint8)) == 0


def test_it_does_not_overflow():
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    assert sharpness(np.repeat(checker[..., None], 3, 2).astype(np.uint8)) == pytest.approx(1020**2)


@pytest.mark.parametrize("shape", [(2, 9), (9, 2), (0, 5)])
def test_what_is_too_small_to_have_a_laplacian_is_not_sharp(shape):
    assert sharpness(np.zeros((*shape, 3), np.uint8)) == 0

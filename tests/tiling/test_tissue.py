import numpy as np
from skimage.filters import threshold_otsu

from tiling.phantom import Phantom, PhantomSpec
from tiling.slide import open_slide
from tiling.tissue import Thumbnail, map_tissue, mask_downsample, read_thumbnail


def test_a_thumbnail_is_the_area_mean(data):
    slide = open_slide(data / "slides/CMU-1-Small-Region.svs")
    whole = slide.read(0, 0, 0, 2220, 2967).astype(float)
    thumbnail = read_thumbnail(slide, mask_downsample(slide, 0.499))
    assert thumbnail.downsample == 16 and thumbnail.pixels.shape == (186, 139, 3)
    for row, column in [(0, 0), (50, 70), (185, 138), (100, 138)]:
        cell = whole[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        assert np.abs(thumbnail.pixels[row, column] - cell.mean((0, 1))).max() <= 0.51


def test_blocks_make_no_seams(phantom_slide):
    slide = open_slide(phantom_slide)
    small = read_thumbnail(slide, 3.0)  # 2,048 is no multiple of 3: blocks must still start on a cell
    assert small.downsample == 3 and small.pixels.shape == (1003, 1334, 3)
    cell = slide.read(0, 3 * 700, 3 * 400, 3, 3).mean((0, 1))
    assert np.abs(small.pixels[400, 700] - cell).max() <= 0.51


def test_phantom_tissue_is_found_to_the_pixel():
    spec = PhantomSpec(width_px=6000, height_px=5000, seed=11, tumour=False)
    phantom = Phantom(spec)
    pixels = phantom.render(0, 0, 6000, 5000)[:4992, :5984].reshape(156, 32, 187, 32, 3).mean((1, 3)).astype(np.uint8)
    mask = map_tissue(Thumbnail(pixels, 32.0), "otsu", 0.25).tissue
    from skimage.draw import polygon2mask

    truth = np.zeros(mask.shape, bool)
    for outline in phantom.tissue:
        truth |= polygon2mask(mask.shape, outline[:, ::-1] / 32 - 0.5)
    both = (mask & truth).sum()
    assert both / mask.sum() > 0.97 and both / truth.sum() > 0.90  # lumina and fat inside the outline are no tissue


def test_all_tissue_stays_whole_and_glass_stays_empty(data):
    inside = open_slide(data / "slides/CMU-1-Small-Region.svs").read(0, 1024, 2048, 768, 768)  # tissue all over
    small = inside.reshape(96, 8, 96, 8, 3).mean((1, 3)).astype(np.uint8)
    assert threshold_otsu(np.ptp(small, axis=2) / small.max(2)) > 0.2  # plain Otsu would cut it in two
    assert map_tissue(Thumbnail(small, 8.0), "otsu", 0.499).tissue.mean() > 0.97
    rng = np.random.default_rng(0)
    glass = (np.array([236, 234, 230]) + rng.normal(0, 2, (200, 300, 3))).clip(0, 255).astype(np.uint8)
    assert not map_tissue(Thumbnail(glass, 16.0), "otsu", 0.5).tissue.any()
    assert map_tissue(Thumbnail(glass, 16.0), "all", 0.5).tissue.all()


def test_specks_and_holes_are_cleaned_by_their_size_in_micrometres():
    pixels = np.full((200, 200, 3), 240, np.uint8)
    pixels[20:120, 20:120] = (200, 120, 170)
    pixels[60:66, 60:66] = 240  # hole of 48 µm
    pixels[160:166, 160:166] = (200, 120, 170)  # speck of 48 µm
    pixels[20:50, 150:180] = (200, 120, 170)  # piece of 240 µm
    mask = map_tissue(Thumbnail(pixels, 16.0), "otsu", 0.5).tissue
    assert mask[63, 63] and mask[30, 160] and not mask[162, 162]
    assert 100**2 + 30**2 <= mask.sum() <= 102**2 + 32**2  # a pixel of edge may be added


def test_black_borders_are_no_tissue():
    pixels = np.full((200, 200, 3), 240, np.uint8)
    pixels[:, :30] = np.random.default_rng(0).integers(0, 12, (200, 30, 3))
    assert not map_tissue(Thumbnail(pixels, 16.0), "otsu", 0.5).tissue.any()

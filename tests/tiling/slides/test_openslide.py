import numpy as np
from skimage.data import astronaut

from tiling.slides.opening import open_slide

PHOTOGRAPH = astronaut()


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


def test_what_a_mirax_slide_never_scanned_has_its_background_colour(write_mrxs, tmp_path):
    pixels = PHOTOGRAPH[:512, :512]
    write_mrxs(tmp_path / "x.mrxs", pixels, missing=((1, 2), (2, 0)), background=(230, 220, 210))
    slide = open_slide(tmp_path / "x.mrxs")
    assert slide.backend == "openslide" and slide.mpp == (0.5, 0.5) and slide.downsamples == (1, 2)
    assert (slide.read(0, 128, 256, 128, 128) == (230, 220, 210)).all()
    assert (slide.read(0, 64, 128, 64, 64, 2) == (230, 220, 210)).all()
    error = np.abs(slide.read(0, 0, 0, 512, 512).astype(int) - pixels)
    assert error[:256, :256].mean() < 2 and error[256:384, 128:256].mean() > 20
    halved = pixels.reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(slide.read(0, 0, 0, 64, 64, 2) - halved[:64, :64]).mean() < 1.5

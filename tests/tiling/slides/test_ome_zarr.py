"""OME-Zarr folders written by zarr as the specification says, of both versions, read pixel by pixel."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from tiling import tile
from tiling.jobs.errors import SlideError
from tiling.manifest import load_slides
from tiling.slides.files import slide_fingerprint
from tiling.slides.opening import open_slide
from tiling.store.patches import PatchStore

PICTURE = np.random.default_rng(0).integers(0, 256, (301, 400, 3), dtype=np.uint8)
UNIT = {"type": "space", "unit": "micrometer"}


def pyramid_of(picture, levels=3):
    """Each level is every second pixel of the finer one, so that what is read is known exactly."""
    return [picture[:: 2**i, :: 2**i] for i in range(levels)]


def write_ome_zarr(folder, levels, version="0.5", axes="cyx", chunk=128, mpp=0.25, into=None, **how):
    """into: a group that is there already. how: of zarr's create_array."""
    group = zarr.open_group(folder, mode="w", zarr_format=2 if version == "0.4" else 3) if into is None else into
    if version == "0.4":
        how["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    datasets = []
    for i, level in enumerate(levels):
        shape = dict(zip("yxc", level.shape, strict=True))
        data = level.transpose(["yxc".index(a) for a in axes if a in shape])
        data = data.reshape([shape.get(a, 1) for a in axes])
        chunks = tuple(min(chunk, shape[a]) if a in "yx" else 1 for a in axes)
        group.create_array(str(i), shape=data.shape, chunks=chunks, dtype=data.dtype, **how)[:] = data
        scale = [mpp * levels[0].shape["yx".index(a)] / shape[a] if a in "yx" else 1.0 for a in axes]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    named = [{"name": a, **(UNIT if a in "yx" else {"type": "channel" if a == "c" else "time"})} for a in axes]
    pyramid = {"axes": named, "datasets": datasets, "name": "slide"}
    if version == "0.4":
        group.attrs["multiscales"] = [{**pyramid, "version": version}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [pyramid]}
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["cyx", "yxc", "tczyx"])
def test_pixels_and_scale(tmp_path, version, axes):
    levels = pyramid_of(PICTURE)
    slide = open_slide(write_ome_zarr(tmp_path / "s.ome.zarr", levels, version, axes))
    assert slide.backend == "ome-zarr" and slide.level_sizes == ((400, 301), (200, 151), (100, 76))
    assert slide.mpp == (0.25, 0.25) and slide.mpp_source == "OME-Zarr"
    assert slide.downsamples == pytest.approx((1, 2, 4), rel=0.01)
    for level, picture in enumerate(levels):
        h, w = picture.shape[:2]
        assert np.array_equal(slide.read(level, 0, 0, w, h), picture)
        around = slide.read(level, -3, 20, w + 10, 50)
        assert (around[:, :3] == 255).all() and (around[:, -7:] == 255).all()
        assert np.array_equal(around[:, 3:-7], picture[20:70])
    halves = PICTURE[100:200, 40:240].reshape(50, 2, 100, 2, 3).mean((1, 3))
    assert np.abs(slide.read(0, 20, 50, 100, 50, 2) - halves).max() <= 0.5
    slide.close()


def test_shards_and_codecs(tmp_path):
    codecs = [zarr.codecs.BloscCodec(cname="lz4"), zarr.codecs.GzipCodec()]
    for i, codec in enumerate(codecs):
        how = {"compressors": codec, "shards": (3, 256, 256)}
        slide = open_slide(write_ome_zarr(tmp_path / f"{i}.zarr", [PICTURE], chunk=64, **how))
        assert np.array_equal(slide.read(0, 0, 0, 400, 301), PICTURE)


@pytest.mark.parametrize(
    ("unit", "scale", "mpp"),
    [("nanometer", 250, 0.25), ("millimeter", 5e-4, 0.5), ("parsec", 1, None), (None, 1, None)],
)
def test_units(tmp_path, monkeypatch, unit, scale, mpp):
    monkeypatch.setitem(UNIT, "unit", unit)
    slide = open_slide(write_ome_zarr(tmp_path / "s.zarr", [PICTURE], mpp=scale))
    assert slide.mpp == (mpp and pytest.approx((mpp, mpp)))
    assert slide.mpp_source == ("OME-Zarr" if mpp else "")


def test_the_scale_of_the_whole_pyramid_counts(tmp_path):
    group = zarr.open_group(write_ome_zarr(tmp_path / "s.zarr", [PICTURE], mpp=1.0), mode="a")
    described = group.attrs["ome"]
    described["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1.0, 0.5, 0.25]}]
    group.attrs["ome"] = described
    assert open_slide(tmp_path / "s.zarr").mpp == (0.25, 0.5)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_of_several_images_the_largest_is_the_slide(tmp_path, version):
    root = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    for name, picture in (("0", PICTURE[:50, :50]), ("1", PICTURE), ("2", PICTURE[:9, :9])):
        write_ome_zarr(None, [picture], version, into=root.create_group(name))
    root.create_group("OME")
    said = {"bioformats2raw.layout": 3}
    root.attrs.update(said if version == "0.4" else {"ome": {"version": "0.5", **said}})
    assert np.array_equal(open_slide(tmp_path / "s.zarr").read(0, 0, 0, 400, 301), PICTURE)
    assert [row.path for row in load_slides(tmp_path)] == [tmp_path / "s.zarr"]


def test_what_is_refused_says_what_was_found(tmp_path):
    def refused(name, said, levels=(PICTURE,), version="0.5", **how):
        folder = write_ome_zarr(tmp_path / f"{name}.zarr", list(levels), version, **how)
        with pytest.raises(SlideError, match=said) as error:
            open_slide(folder)
        assert str(folder) in str(error.value)

    refused("version", "OME-Zarr version 0.6, expected 0.4 or 0.5", version="0.6")
    refused("grey", r"found uint8 of c 1, y 301, x 400; expected uint8 RGB \(c 3\)", [PICTURE[..., :1]])
    refused("deep", "found uint16 of c 3, y 301, x 400", [PICTURE.astype(np.uint16)])
    large = zarr.open_group(write_ome_zarr(tmp_path / "large.zarr", [PICTURE]), mode="a")
    large.create_array("0", shape=(3, 20_000, 20_000), chunks=(1, 20_000, 20_000), dtype=np.uint8, overwrite=True)
    with pytest.raises(SlideError, match=r"chunks of \(1, 20000, 20000\), too large to decode one by one"):
        open_slide(tmp_path / "large.zarr")
    zarr.create_group(tmp_path / "plain.zarr").attrs["format"] = "other"
    with pytest.raises(SlideError, match="without OME-Zarr's `multiscales`; it is no slide"):
        open_slide(tmp_path / "plain.zarr")


def test_damage_is_told(tmp_path):
    folder = write_ome_zarr(tmp_path / "s.zarr", [PICTURE], compressors=zarr.codecs.ZstdCodec())
    chunk = folder / "0/c/1/1/2"
    chunk.write_bytes(chunk.read_bytes()[:-50])
    slide = open_slide(folder)
    assert np.array_equal(slide.read(0, 0, 0, 128, 128), PICTURE[:128, :128])
    with pytest.raises(SlideError, match=r"s.zarr: damaged chunk 1, 2 of level 0"):
        slide.read(0, 256, 128, 100, 100)
    for broken in ({"ome": {"version": "0.5", "multiscales": []}}, {"ome": {"version": "0.5", "multiscales": [{}]}}):
        zarr.open_group(folder, mode="a").attrs.update(broken)
        with pytest.raises(SlideError, match=r"s.zarr: no OME-Zarr that can be read"):
            open_slide(folder)
    shutil.rmtree(folder / "0")
    with pytest.raises(SlideError, match=r"s.zarr: "):
        open_slide(folder)


def test_a_chunk_that_is_not_there_is_the_fill_value(tmp_path):
    folder = write_ome_zarr(tmp_path / "s.zarr", [PICTURE], fill_value=255)
    for channel in "012":
        (folder / f"0/c/{channel}/0/1").unlink()
    assert (open_slide(folder).read(0, 128, 0, 128, 128) == 255).all()


def test_threads_read_at_once(tmp_path):
    slide = open_slide(write_ome_zarr(tmp_path / "s.zarr", [PICTURE], chunk=64))
    corners = [(x, y) for x in range(0, 340, 17) for y in range(0, 240, 13)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda corner: slide.read(0, *corner, 60, 60), corners))
    for (x, y), region in zip(corners, found, strict=True):
        assert np.array_equal(region, PICTURE[y : y + 60, x : x + 60])


def test_a_folder_is_found_once_and_stores_are_no_slides(tmp_path):
    write_ome_zarr(tmp_path / "in/one.ome.zarr", pyramid_of(PICTURE), "0.4")
    write_ome_zarr(tmp_path / "in/sub/two.zarr", pyramid_of(PICTURE))
    assert [row.slide_id for row in load_slides(tmp_path / "in")] == ["one.ome", "two"]
    assert [row.path for row in load_slides(tmp_path / "in/sub/two.zarr")] == [tmp_path / "in/sub/two.zarr"]
    assert [row.slide_id for row in load_slides(str(tmp_path / "in/*.zarr"))] == ["one.ome"]
    (tmp_path / "t.csv").write_text("path\nin/one.ome.zarr\n")
    assert [row.slide_id for row in load_slides(tmp_path / "t.csv")] == ["one.ome"]
    how = {"mpp": 0.25, "patch_px": 128, "tissue": "all", "grid": "origin", "pixels": "zstd", "workers": 1}
    tiled = tile(tmp_path / "in", tmp_path / "in/patches", **how)
    assert tiled.counts == {"done": 2}
    assert [row.slide_id for row in load_slides(tmp_path / "in")] == ["one.ome", "two"]  # the patches lie there too
    store = PatchStore(tmp_path / "in/patches/two.zarr")
    assert store.info.backend == "ome-zarr" and store.info.mpp_source == "OME-Zarr"
    for (x, y), patch in zip(store.coords_l0, store.read(np.arange(len(store.coords_l0))), strict=True):
        assert np.array_equal(patch, PICTURE[y : y + 128, x : x + 128])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_fingerprint_sees_what_changes(tmp_path, version):
    folder = write_ome_zarr(tmp_path / "s.zarr", pyramid_of(PICTURE), version, chunk=64)
    first = slide_fingerprint(folder)
    shutil.copytree(folder, tmp_path / "again.zarr")
    assert slide_fingerprint(tmp_path / "again.zarr") == first  # neither name nor time matters
    metadata = folder / (".zattrs" if version == "0.4" else "zarr.json")
    text = metadata.read_text()
    metadata.write_text(text.replace("0.25", "0.26"))
    assert json.loads(metadata.read_text()) != json.loads(text) and slide_fingerprint(folder) != first
    metadata.write_text(text)
    assert slide_fingerprint(folder) == first
    chunk = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.isdigit())[0]
    content = chunk.read_bytes()
    chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert slide_fingerprint(folder) != first
    chunk.unlink()
    assert slide_fingerprint(folder) != first

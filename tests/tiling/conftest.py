"""Aperio and plain TIFF files of every kind that scanners write."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

from tiling.phantom.phantom import PhantomSpec, write_phantom

APERIO = "Aperio Image Library v10.0.51\r\n{w}x{h} [0,0 {w}x{h}] ({t}x{t}) JPEG/{c} Q=90|AppMag = 20|MPP = 0.5"


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """(tables, image): the DQT and DHT segments of a JPEG, and what is left of it."""
    tables, rest, place = b"", b"", 2
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] in (0xDB, 0xC4):
            tables += jpeg[place:end]
        else:
            rest += jpeg[place:end]
        place = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + jpeg[place:]


def _without_markers(jpeg: bytes) -> bytes:
    """Without JFIF and Adobe segments, as Aperio writes tiles: only the TIFF tag tells the colour space."""
    place = 2
    while 0xE0 <= jpeg[place + 1] <= 0xEF:
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return b"\xff\xd8" + jpeg[place:]


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small slides: a.svs, b.svs, c.svs."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate("abc"):
        spec = PhantomSpec(width_px=1504, height_px=1504, seed=seed, tumour=False)
        write_phantom(spec, folder / f"{name}.svs")
    return folder


@pytest.fixture
def write_slide() -> Callable[..., None]:
    """write_slide(path, pixels, …): levels 1, 2 and 4 in JPEG tiles, as `.svs` or plain `.tiff`."""

    def write(
        path: Path,
        pixels: np.ndarray,
        tile: int = 64,
        colours: str = "420",
        shared_tables: bool = False,
        jfif: bool = False,
        sparse: tuple[tuple[int, int], ...] = (),
        factors: tuple[int, ...] = (1, 2, 4),
    ) -> None:
        """colours: "444", "422", "420", or "rgb" for JPEG without colour transform. sparse: (level, tile) left out."""

        def encode(square: np.ndarray) -> bytes:
            if colours == "rgb":
                return imagecodecs.jpeg8_encode(square, 90, colorspace="rgb", outcolorspace="rgb")
            return simplejpeg.encode_jpeg(square, 90, "RGB", colours)

        with tifffile.TiffWriter(path) as file:
            for level, factor in enumerate(factors):
                image = np.asarray(Image.fromarray(pixels).reduce(factor))
                h, w = image.shape[:2]
                padded = np.pad(image, ((0, -h % tile), (0, -w % tile), (0, 0)), mode="edge")
                tables, tiles = b"", []
                for y in range(0, h, tile):
                    for x in range(0, w, tile):
                        jpeg = encode(np.ascontiguousarray(padded[y : y + tile, x : x + tile]))
                        jpeg = jpeg if jfif else _without_markers(jpeg)
                        if shared_tables:
                            tables, jpeg = split_tables(jpeg)
                        tiles.append(b"" if (level, len(tiles)) in sparse else jpeg)
                kind = "YCC" if colours != "rgb" else "RGB"
                tags = [(347, 7, len(tables), tables, True)] if shared_tables else []
                how = (
                    {"description": APERIO.format(w=w, h=h, t=tile, c=kind)}
                    if path.suffix == ".svs"
                    else {"resolution": (20000 / factor,) * 2, "resolutionunit": "CENTIMETER"}
                )
                if path.suffix != ".svs":
                    how["subfiletype"] = int(level > 0)
                file.write(
                    iter(tiles), shape=image.shape, dtype="uint8", tile=(tile, tile), compression="jpeg",
                    photometric="rgb" if colours == "rgb" else "ycbcr", subsampling=_SAMPLING.get(colours),
                    compressionargs={"outcolorspace": "rgb"} if colours == "rgb" else None,
                    metadata=None, extratags=tags, **how,
                )  # fmt: skip

    return write


_SAMPLING = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}


@pytest.fixture
def write_mrxs() -> Callable[..., None]:
    """write_mrxs(path, pixels, …): a MIRAX slide of two levels, its folder beside it, as OpenSlide documents them."""

    def write(
        path: Path,
        pixels: np.ndarray,
        tile: int = 128,
        missing: tuple[tuple[int, int], ...] = (),
        background: tuple[int, int, int] = (230, 220, 210),
        mpp: float = 0.5,
        planted: str = "none",
        label: np.ndarray | None = None,
    ) -> None:
        """missing: (column, row) of tiles never scanned. planted: text in every free field. label: its picture."""
        rows, columns = pixels.shape[0] // tile, pixels.shape[1] // tile
        folder = path.with_suffix("")
        folder.mkdir()
        path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:64, :64]), 90, "RGB"))
        data, pages = b"\0" * 32, []
        for factor in (1, 2):
            entries = []
            for row in range(0, rows, factor):
                for column in range(0, columns, factor):
                    if (column, row) in missing:
                        continue
                    top, left = row * tile, column * tile
                    square = Image.fromarray(pixels[top : top + tile * factor, left : left + tile * factor])
                    jpeg = simplejpeg.encode_jpeg(np.asarray(square.reduce(factor)), 95, "RGB", "444")
                    entries.append((row * columns + column, len(data), len(jpeg), 0))
                    data += jpeg
            pages.append(entries)
        slide_id = "0123456789ABCDEF0123456789ABCDEF"
        sections = "".join(
            f"[LAYER_0_LEVEL_{i}_SECTION]\nOVERLAP_X = 0\nOVERLAP_Y = 0\nMICROMETER_PER_PIXEL_X = {mpp * 2**i}\n"
            f"MICROMETER_PER_PIXEL_Y = {mpp * 2**i}\nIMAGE_FORMAT = JPEG\nIMAGE_CONCAT_FACTOR = {i}\n"
            f"IMAGE_FILL_COLOR_BGR = {background[2] << 16 | background[1] << 8 | background[0]}\n"
            f"DIGITIZER_WIDTH = {tile}\nDIGITIZER_HEIGHT = {tile}\n"
            for i in range(2)
        )
        nonhier = "NONHIER_COUNT = 0\n"
        if label is not None:
            nonhier = (
                "NONHIER_COUNT = 1\nNONHIER_0_NAME = Scan data layer\nNONHIER_0_COUNT = 1\n"
                "NONHIER_0_VAL_0 = ScanDataLayer_SlideBarcode\nNONHIER_0_VAL_0_SECTION = BARCODE\n"
            )
            sections += "[BARCODE]\nBARCODE_IMAGE_TYPE = JPEG\n"
        (folder / "Slidedat.ini").write_text(
            f"[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = {slide_id}\nIMAGENUMBER_X = {columns}\n"
            f"IMAGENUMBER_Y = {rows}\nOBJECTIVE_MAGNIFICATION = 20\nSLIDE_NAME = {planted}\nPROJECT_NAME = {planted}\n"
            f"SLIDE_CREATIONDATETIME = {planted}\n[HIERARCHICAL]\nHIER_COUNT = 1\n{nonhier}INDEXFILE = Index.dat\n"
            "HIER_0_NAME = Slide zoom level\nHIER_0_COUNT = 2\nHIER_0_VAL_0 = ZoomLevel_0\nHIER_0_VAL_1 = ZoomLevel_1\n"
            "HIER_0_VAL_0_SECTION = LAYER_0_LEVEL_0_SECTION\nHIER_0_VAL_1_SECTION = LAYER_0_LEVEL_1_SECTION\n"
            f"[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n{sections}",
            encoding="utf-8-sig",
        )
        head = b"01.02" + slide_id.encode()
        roots = len(head) + 8  # two pointers: to the hierarchical records, and to the others
        body, records = b"", []
        for entries in pages:
            records.append(roots + 8 + 4 + len(body))
            page = np.array([len(entries), 0, *np.ravel(entries)], "<i4").tobytes()
            body += np.array([0, records[-1] + 8], "<i4").tobytes() + page
        if label is not None:
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(label), 95, "RGB", "444")
            records.append(roots + 8 + 4 + len(body))
            page = np.array([1, 0, 0, 0, len(data), len(jpeg), 0], "<i4").tobytes()
            body += np.array([0, records[-1] + 8], "<i4").tobytes() + page
            data += jpeg
        pointers = np.array([roots, roots + 8, *[*records, 0][:3]], "<i4").tobytes()
        (folder / "Index.dat").write_bytes(head + pointers + body)
        (folder / "Data0000.dat").write_bytes(data)

    return write

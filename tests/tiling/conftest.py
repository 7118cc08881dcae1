"""Aperio and plain TIFF files of every kind that scanners write."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

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

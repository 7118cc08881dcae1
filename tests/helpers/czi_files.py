"""CZI files byte by byte, by ZEISS's published layout (ZISRAW DV 1.2.2): pyramids, JPEG XR, scenes side by side."""

import struct
import uuid
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np

UNCOMPRESSED, JPEG_XR, ZSTD = 0, 4, 5
_BGR24, _GREY8 = 3, 0
_RGB_24, _BGR_24 = (bytes.fromhex(f"24C3DD6F034EFE4BB1853D77768DC9{last}") for last in ("0D", "0C"))  # pixel formats
_ENCODERS = {
    UNCOMPRESSED: lambda tile: tile.tobytes(),
    JPEG_XR: lambda tile: imagecodecs.jpegxr_encode(tile[..., ::-1]).replace(_RGB_24, _BGR_24),  # lossless
    ZSTD: lambda tile: imagecodecs.zstd_encode(tile.tobytes()),
}


def _segment(name: bytes, content: bytes) -> bytes:
    padded = content + bytes(-len(content) % 32)
    return struct.pack("<16sqq", name, len(padded), len(content)) + padded


def _entry(place: int, x: int, y: int, level: int, shape: tuple[int, ...], compression: int, order: int) -> bytes:
    h, w = shape[:2]
    kind = _BGR24 if len(shape) == 3 else _GREY8
    dimensions = (("X", x, w << level, w), ("Y", y, h << level, h), ("C", 0, 1, 1), ("S", 0, 1, 1), ("M", order, 1, 1))
    told = b"".join(
        struct.pack("<4siifi", n.encode(), start, size, start, stored) for n, start, size, stored in dimensions
    )
    head = struct.pack("<2siqiiB5xi", b"DV", kind, place, 0, compression, min(level, 1) * 2, len(dimensions))
    return head + told


def write_czi(
    path: Path, levels: list[np.ndarray], mpp: float, compression: int = UNCOMPRESSED, tile: int = 128, first: int = 0
) -> Path:
    """levels: (H, W, 3) RGB or (H, W) grey, each half of the one before, in tiles; its corner is at (-300, 700).

    first: side of the first tiles, where it is not that of the others.
    """
    xml = (
        "<ImageDocument><Metadata><Information><Image><PixelType>Bgr24</PixelType>"
        f"<SizeX>{levels[0].shape[1]}</SizeX><SizeY>{levels[0].shape[0]}</SizeY><SizeC>1</SizeC><SizeS>1</SizeS>"
        f"<SizeM>{len(levels)}</SizeM></Image></Information><Scaling><Items>"
        + "".join(f'<Distance Id="{axis}"><Value>{mpp * 1e-6!r}</Value></Distance>' for axis in "XY")
        + "</Items></Scaling></Metadata></ImageDocument>"
    ).encode()
    file, entries = bytearray(32 + 512), []
    metadata_at = len(file)
    file += _segment(b"ZISRAWMETADATA", struct.pack("<ii248x", len(xml), 0) + xml)
    for level, picture in enumerate(levels):
        rows, columns = (sorted({0, *range(first, size, tile)}) for size in picture.shape[:2])
        for top, bottom in pairwise([*rows, picture.shape[0]]):
            for left, right in pairwise([*columns, picture.shape[1]]):
                part = picture[top:bottom, left:right]
                stored = np.ascontiguousarray(part[..., ::-1] if part.ndim == 3 else part)
                data = _ENCODERS[compression](stored)
                where = (left << level) - 300, (top << level) + 700
                entry = _entry(len(file), *where, level, part.shape, compression, len(entries))
                head = struct.pack("<iiq", 0, 0, len(data)) + entry
                file += _segment(b"ZISRAWSUBBLOCK", head + bytes(max(0, 256 - len(head))) + data)
                entries.append(entry)
    directory_at = len(file)
    file += _segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(entries)) + b"".join(entries))
    attachments_at = len(file)
    file += _segment(b"ZISRAWATTDIR", bytes(256))
    guid = uuid.UUID(int=1).bytes
    header = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, guid, guid, 0, directory_at, metadata_at, 0, attachments_at)
    file[: 32 + 512] = _segment(b"ZISRAWFILE", header.ljust(512, b"\0"))
    path.write_bytes(bytes(file))
    return path

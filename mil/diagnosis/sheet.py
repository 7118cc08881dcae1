"""Several images on one JPEG, in rows."""

import io
from collections.abc import Sequence

from PIL import Image

_GAP_PX = 6


def sheet(images: Sequence[Image.Image], columns: int) -> bytes:
    """RGB images from the left, `columns` a row, each in a cell as large as the largest needs."""
    columns = min(columns, len(images))
    width, height = (max(sizes) + _GAP_PX for sizes in zip(*(image.size for image in images), strict=True))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * width - _GAP_PX, rows * height - _GAP_PX), "white")
    for i, image in enumerate(images):
        canvas.paste(image, (i % columns * width, i // columns * height))
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=88)
    return out.getvalue()

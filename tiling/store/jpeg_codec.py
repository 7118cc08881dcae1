"""The zarr codec `imagecodecs_jpeg`: one RGB patch is one JPEG image.

Same identifier and configuration as the codec of the package imagecodecs, whose releases for Python 3.12 and
later have it in `imagecodecs.zarr`; this module gives it to every Python that slidemil runs on.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import imagecodecs
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.registry import register_codec

NAME = "imagecodecs_jpeg"


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """level: JPEG quality 1 to 100. subsampling: of the colour channels, "444" or "420"."""

    is_fixed_size = False
    level: int | None = None
    subsampling: str | None = None

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> "JpegCodec":
        _, configuration = parse_named_configuration(data, NAME, require_configuration=False)
        values: dict[str, Any] = dict(configuration or {})
        return cls(level=values.get("level"), subsampling=values.get("subsampling"))

    def to_dict(self) -> dict[str, JSON]:
        configuration: dict[str, JSON] = {"level": self.level, "subsampling": self.subsampling}
        return {"name": NAME, "configuration": {k: v for k, v in configuration.items() if v is not None}}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = await asyncio.to_thread(imagecodecs.jpeg8_decode, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        pixels = chunk_data.as_numpy_array()
        pixels = pixels.reshape(pixels.shape[-3:])
        encoded = await asyncio.to_thread(
            imagecodecs.jpeg8_encode, pixels, level=self.level, subsampling=self.subsampling
        )
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("a JPEG has no fixed size")


register_codec(NAME, JpegCodec)

"""Networks in 8-bit integers (`--precision int8`): calibrated on a sample of the slides once, then kept.

Post-training quantisation by NNCF (Kozlov et al., "Neural Network Compression Framework", 2020), which the extra `int8`
brings: it sees the activations of the sample, and chooses the scales at which they and the weights become integers. How
near the features come to those in fp32 is measured on a part of the sample that it has not seen.
"""

import io
import logging
import math
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from features.config import EmbedSettings, FeatureConfig
from features.embed.arithmetic import exact_arithmetic
from features.embed.device import pick_devices
from features.embed.engines import openvino_model
from features.embed.patch_source import in_memory
from features.embed.pipe import Embedder
from features.embed.sample import Sample, draw_sample, make_once
from features.encoders import Encoder
from features.encoders.int8 import FILE, Int8Network, write_int8
from tiling.jobs.errors import RequestError
from tiling.manifest import SlideRow
from tiling.slides.slide import Pixels

PATCHES = 384  # in all, at least one a slide; NNCF wants 300 to calibrate on
_HELD_BACK = 4  # of so many patches, one


def keep_int8(rows: Sequence[SlideRow], encoder: Encoder, config: FeatureConfig, patches: Path, out: Path) -> None:
    """Have FILE in `out`, calibrated on `rows` where it is not there; other jobs wait. Raises RequestError."""
    if pick_devices(config.device)[0].type != "cpu":
        raise RequestError("--precision int8 computes on the CPU; add --device cpu")

    def make() -> None:
        sample = draw_sample(rows, patches, PATCHES, config.seed, "--precision int8")
        write_int8(out / FILE, calibrate(encoder, sample, config.input_px))

    make_once(out / FILE, config.fits_anew, make)


def calibrate(encoder: Encoder, sample: Sample, input_px: int = 0) -> Int8Network:
    """A quarter of the sample, a patch at least, is held back. Raises RequestError.

    input_px: side of the images that the network is given; 0: as the encoder wants.
    """
    held_back = -(-len(sample.pixels) // _HELD_BACK)
    seen, others = sample.pixels[held_back:], sample.pixels[:held_back]
    if not len(seen):
        raise RequestError("--precision int8: one patch is too little to calibrate on; use --precision bf16")
    settings = EmbedSettings(device="cpu", precision="fp32", engine="openvino", input_px=input_px)
    plain = Embedder(encoder, settings)
    found = replace(_quantised(plain, seen), slides=sample.slides, held_back=len(others))
    quantised = Embedder(encoder.in_int8(found), replace(settings, precision="int8"))
    with exact_arithmetic(plain.lanes):
        there, here = (embedder.embed(in_memory(others)) for embedder in (plain, quantised))
    cosines = (there * here).sum(1) / np.linalg.norm(there, axis=1) / np.linalg.norm(here, axis=1)
    return replace(found, cosine_mean=float(cosines.mean()), cosine_lowest=float(cosines.min()))


def _quantised(plain: Embedder, patches: Pixels) -> Int8Network:
    """Not compared yet."""
    try:
        import nncf
        import openvino
    except ImportError:
        raise RequestError("--precision int8 needs the extra `int8`: pip install 'slidemil[int8]'") from None

    def prepared(i: int) -> NDArray[np.float32]:
        images = torch.from_numpy(patches[i : i + 1]).permute(0, 3, 1, 2)
        seen: NDArray[np.float32] = encoder.preprocessing.apply(images, plain.input_px(patches.shape[1])).numpy()
        return np.ascontiguousarray(seen)

    encoder = plain.encoder
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # of its progress bars
        network = nncf.quantize(
            openvino_model(encoder.model, plain.side),
            nncf.Dataset(range(len(patches)), prepared),
            preset=nncf.QuantizationPreset.MIXED,  # activations may be all on one side of zero
            subset_size=len(patches),
        )
    with tempfile.TemporaryDirectory() as folder:
        structure, values = Path(folder, "network.xml"), Path(folder, "network.bin")
        openvino.serialize(network, structure, values)
        return Int8Network(
            structure=np.fromfile(structure, np.uint8),
            values=np.fromfile(values, np.uint8),
            weights_sha256=encoder.weights_sha256,
            input_px=plain.side,
            patches=len(patches),
            slides=0,
            held_back=0,
            cosine_mean=math.nan,
            cosine_lowest=math.nan,
            openvino=metadata.version("openvino"),
            nncf=metadata.version("nncf"),
        )

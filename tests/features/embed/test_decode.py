"""JPEG patches decoded by torch, and where that is done."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from features.embed.decode import Decoder, decode_on_gpu
from features.embed.patch_source import PatchSource, in_memory
from tiling.jobs.errors import SlideError
from tiling.store.patches import encode

JPEG_INFO = SimpleNamespace(config={"pixels": "jpeg", "jpeg_quality": 90}, jpeg_subsampling="444")


CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:The image decoding")
def test_torchs_decoder_gives_the_same_pixels_up_to_rounding(tissue):
    patches = tissue(6, 96)
    jpegs = [encode(patch, JPEG_INFO) for patch in patches]
    source = in_memory(patches)
    got = decode_on_gpu(jpegs, source, range(6), CPU)
    assert got.shape == patches.shape and got.is_contiguous()
    assert np.abs(got.numpy().astype(int) - patches).mean() < 2.5  # what JPEG loses
    damaged = [*jpegs[:2], jpegs[2][:30] + bytes(500), *jpegs[3:]]
    assert (decode_on_gpu(damaged, source, range(6), CPU).numpy() == patches).all()  # `read` has the last word

    def refuse(indices):
        raise SlideError("patch 2 cannot be decoded")

    with pytest.raises(SlideError, match="patch 2"):
        decode_on_gpu(damaged, PatchSource(6, 96, refuse), range(6), CPU)


@pytest.mark.filterwarnings("ignore:The image decoding")
def test_where_patches_are_decoded_is_measured_once(tissue, monkeypatch):
    patches = tissue(9, 64)
    jpegs = [encode(patch, JPEG_INFO) for patch in patches]
    source = PatchSource(9, 64, lambda i: patches[i], lambda i: [jpegs[j] for j in i])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    said = []
    decoder = Decoder("auto", CPU, said.append)
    with ThreadPoolExecutor(2) as threads:
        assert decoder.on_gpu(source, threads) is False and not said  # there is no GPU to ask
        decoder = Decoder.__new__(Decoder)
        decoder.__dict__.update(vars(Decoder("auto", CPU, said.append)), _choice="auto")
        first = decoder.on_gpu(source, threads)
        assert len(said) == 1 and "patches are decoded" in said[0]
        assert decoder.on_gpu(source, threads) is first and len(said) == 1

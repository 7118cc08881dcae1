"""The pipe around the encoder: several slides and devices at once, decoding by torch, the end of a run in mid-slide."""

import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from features.config import EmbedSettings
from features.embed.decode import Decoder, decode_on_gpu
from features.embed.device import pick_devices
from features.embed.patch_source import PatchSource, in_memory
from features.embed.pipe import Embedder, embed
from features.encoders import Preprocessing, freeze, load_encoder
from features.feature_file import read_embeddings
from tiling.jobs.errors import RequestError, SlideError
from tiling.store.patches import encode

JPEG_INFO = SimpleNamespace(config={"pixels": "jpeg", "jpeg_quality": 90}, jpeg_subsampling="444")
CPU = torch.device("cpu")


def test_slides_at_once_give_what_each_gives_alone(tissue):
    encoder = load_encoder("resnet18", "random")
    embedder = Embedder(encoder, EmbedSettings(device="cpu", precision="fp32", batch_size=3))
    slides = [in_memory(tissue(n, 64, seed=n)) for n in (1, 17, 5, 30, 8)]

    def whole(slide):
        return np.concatenate([batch.features for batch in embedder.embed(slide)])

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(whole, slides))
    for slide, got in zip(slides, together, strict=True):
        one_by_one = EmbedSettings(device="cpu", precision="fp32", batch_size=1)
        expected = embed(encoder, slide.read(range(slide.count)), one_by_one)
        assert got.shape == expected.shape and np.abs(got - expected).max() < 1e-4 * expected.std()


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


def test_devices_that_are_not_there_are_wrong_requests():
    assert pick_devices("cpu") == [CPU]
    for names in ("cpu,cpu", "cpu,cuda:0", "tpu"):
        with pytest.raises(RequestError, match=f"--device {names.split(',')[-1] if names == 'cpu,cuda:0' else names}"):
            pick_devices(names)
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="no CUDA GPU"):
            pick_devices("all")
        with pytest.raises(RequestError, match="--decode gpu needs a CUDA device"):
            Decoder("gpu", CPU)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_ends_within_seconds_and_leaves_whole_files(make_store, tissue, tmp_path, sign):
    out = tmp_path / "out"
    for i in range(3):
        make_store(tmp_path / "patches", f"s{i}", tissue(8 if i == 0 else 2000, 64, seed=i))
    arguments = [tmp_path / "patches", "--out", out, "--encoder", "resnet34", "--weights", "random", "--device", "cpu"]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from features.cli import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not list(out.glob("s0.h5")):
        time.sleep(0.05)
        assert running.poll() is None
    start = time.monotonic()
    running.send_signal(sign)
    _, said = running.communicate(timeout=60)
    assert time.monotonic() - start < 10 and running.returncode == 130
    assert "stopped; what is finished stays" in said and "Traceback" not in said
    assert [p.name for p in out.iterdir()] == ["s0.h5"]
    assert len(read_embeddings(out / "s0.h5").features) == 8


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "side"), [("efficientnet-lite0", 96), ("timm:vit_tiny_patch16_224", 224)])
def test_openvino_gives_the_same_features(tissue, name, side):
    encoder = load_encoder(name, "default" if name == "efficientnet-lite0" else "random")
    patches = tissue(3, side)
    expected = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32"))
    got = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32", batch_size=2, engine="openvino"))
    assert got.shape == expected.shape and np.abs(got - expected).max() < 1e-3 * expected.std()


def test_an_engine_that_is_missing_is_a_wrong_request(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RequestError, match="needs the extra `openvino`"):
        Embedder(load_encoder("resnet18", "random"), EmbedSettings(device="cpu", engine="openvino"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_compiled_network_gives_the_same_features(tissue):
    if shutil.which("g++") is None:
        pytest.skip("torch needs a C++ compiler")
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    as_it_is = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    encoder = freeze("small", layers, "random", 0, dim=8, preprocessing=as_it_is)
    patches = tissue(5, 64)
    expected = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32"))
    got = embed(encoder, patches, EmbedSettings(device="cpu", precision="fp32", engine="compile"))
    assert np.abs(got - expected).max() < 1e-3 * expected.std()

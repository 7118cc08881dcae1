"""The pipe around the encoder: several slides at once, the end of a run in mid-slide."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from features.config import EmbedSettings
from features.embed.patch_source import in_memory
from features.embed.pipe import Embedder, embed
from features.encoders import load_encoder
from features.feature_file import read_embeddings


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


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_ends_in_mid_slide_and_leaves_whole_files(make_store, tissue, tmp_path, sign):
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
    running.send_signal(sign)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130
    assert "stopped; what is finished stays" in said and "Traceback" not in said
    assert [p.name for p in out.iterdir()] == ["s0.h5"]
    assert len(read_embeddings(out / "s0.h5").features) == 8

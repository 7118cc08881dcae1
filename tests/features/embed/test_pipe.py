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
        return embedder.embed(slide)

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(whole, slides))
    for slide, got in zip(slides, together, strict=True):
        one_by_one = EmbedSettings(device="cpu", precision="fp32", batch_size=1)
        expected = embed(encoder, slide.all(), one_by_one)
        assert got.shape == expected.shape and np.abs(got - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_ends_in_mid_slide_and_leaves_whole_files(make_store, tissue, tmp_path, sign):
    out = tmp_path / "out"
    counts = {f"s{i}.h5": 8 if i == 0 else 300 for i in range(4)}
    for i, count in enumerate(counts.values()):
        make_store(tmp_path / "patches", f"s{i}", tissue(count, 64, seed=i))
    arguments = [tmp_path / "patches", "--out", out, "--encoder", "resnet34", "--weights", "random", "--device", "cpu"]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from features.cli import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not list(out.glob("*.h5")):
        time.sleep(0.05)
        assert running.poll() is None
    running.send_signal(sign)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130
    assert "stopped; what is finished stays" in said and "Traceback" not in said
    left = [path.name for path in out.iterdir()]
    assert left and set(left) < set(counts)  # no lock, nothing half written, no summary
    for name in left:
        assert len(read_embeddings(out / name).features) == counts[name]

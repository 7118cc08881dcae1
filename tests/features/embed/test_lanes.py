"""Rows through lanes: whose they are, what waits for what, what fails alone. A stand-in for a GPU runs late."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from late_device import LateDevice

from features.config import EmbedSettings
from features.embed.lanes import Lane, Lanes
from features.embed.patch_source import PatchSource, in_memory
from features.embed.pipe import Embedder
from features.embed.queues import AtOnce
from features.encoders import load_encoder
from tiling.jobs.errors import SlideError


def squares(pixels):
    """(n, P, P, 3) → (n, 2): mean and mean square of a patch."""
    values = pixels.to(torch.float32).flatten(1)
    return torch.stack([values.mean(1), values.square().mean(1)], 1)


def lanes(device, network=squares, size=5):
    return Lanes([Lane(device, network)], size, 2, ThreadPoolExecutor(3))


def slides(counts, side=8):
    return [np.random.default_rng(n).integers(0, 256, (n, side, side, 3), np.uint8) for n in counts]


def at_once(pool, sources):
    with ThreadPoolExecutor(len(sources)) as threads:
        futures = [threads.submit(pool.values, source) for source in sources]
        return [future.exception() or future.result() for future in futures]


@pytest.mark.parametrize("device", [AtOnce, LateDevice])
@pytest.mark.parametrize("counts", [(1,), (5,), (23,), (3, 11, 0, 1, 30, 2, 7)])
def test_each_slide_gets_its_own_rows(device, counts):
    patches = slides(counts)
    found = at_once(lanes(device()), [in_memory(p) for p in patches])
    for rows, p in zip(found, patches, strict=True):
        assert np.array_equal(rows, squares(torch.from_numpy(p)).numpy())


@pytest.mark.parametrize("device", [AtOnce, LateDevice])
def test_a_batch_waits_for_patches_that_are_read_slowly(device):
    (p,) = slides([13])

    def read(batch, out):
        time.sleep(0.05)  # longer than the stand-in's copy takes
        out[:] = p[batch.start : batch.stop]

    rows = lanes(device()).values(PatchSource(13, 8, read))
    assert np.array_equal(rows, squares(torch.from_numpy(p)).numpy())


@pytest.mark.parametrize("device", [AtOnce, LateDevice])
def test_patches_of_several_sides_never_share_a_batch(device):
    patches = [slides([9], side)[0] for side in (8, 4, 8, 6)]
    for rows, p in zip(at_once(lanes(device()), [in_memory(p) for p in patches]), patches, strict=True):
        assert np.array_equal(rows, squares(torch.from_numpy(p)).numpy())


def test_slides_share_batches_and_all_have_one_shape():
    seen, begun, others_wait = [], threading.Event(), threading.Event()

    def network(pixels):
        seen.append(tuple(pixels.shape))
        return squares(pixels)

    def read(batch, out):
        begun.set()
        others_wait.wait()

    def rows_that_wait():
        with pool._rows._lock:
            return sum(map(len, pool._rows._waiting))

    pool = Lanes([Lane(LateDevice(), network)], 7, 2, ThreadPoolExecutor(1))
    with ThreadPoolExecutor(8) as threads:
        try:
            first = threads.submit(pool.values, PatchSource(1, 8, read))
            begun.wait()
            others = [threads.submit(pool.values, in_memory(p)) for p in slides([6] * 7)]
            while rows_that_wait() < 42:  # all are there
                time.sleep(0.01)
        finally:
            others_wait.set()
        assert first.result().shape == (1, 2) and all(len(other.result()) == 6 for other in others)
    assert seen == [(7, 8, 8, 3)] * 7  # of 1 row, then of 42


def test_the_device_has_the_next_batch_before_it_is_done_with_one():
    device, decoding = LateDevice(), []

    def read(batch, out):
        decoding.append(device.order.count("computed"))
        out[:] = 0

    lanes(device).values(PatchSource(60, 8, read))
    assert decoding[3] == 0 and device.order.count("computed") == 12  # four batches are decoded before one is done
    assert device.order.index("computed") > 0


@pytest.mark.parametrize("device", [AtOnce, LateDevice])
def test_a_patch_that_cannot_be_read_fails_its_slide_alone(device):
    def broken(batch, out):
        if 4 in batch:
            raise SlideError("patch 4 is damaged")
        out[:] = 0

    good = slides([13, 8])
    found = at_once(lanes(device()), [in_memory(good[0]), PatchSource(300, 8, broken), in_memory(good[1])])
    assert isinstance(found[1], SlideError) and "patch 4" in str(found[1])
    for rows, p in zip(found[::2], good, strict=True):
        assert np.array_equal(rows, squares(torch.from_numpy(p)).numpy())


@pytest.mark.parametrize("device", [AtOnce, LateDevice])
def test_a_network_that_fails_is_heard_of_and_the_next_slide_is_done(device):
    def network(pixels):
        if (pixels == 255).all(dim=3).all(dim=2).all(dim=1).any():
            raise RuntimeError("no such kernel")
        return squares(pixels)

    pool = lanes(device(), network)
    with pytest.raises(RuntimeError, match="no such kernel"):
        pool.values(in_memory(np.full((9, 8, 8, 3), 255, np.uint8)))
    assert pool.values(in_memory(np.zeros((9, 8, 8, 3), np.uint8))).tolist() == [[0.0, 0.0]] * 9


def test_memory_that_runs_out_when_buffers_are_made_makes_smaller_batches():
    class Small(LateDevice):
        def beside(self, host):
            if len(host) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().beside(host)

    seen = set()

    def network(pixels):
        seen.add(len(pixels))
        return squares(pixels)

    pool, (p,) = lanes(Small(), network, size=9), slides([20])
    for _ in range(2):
        assert np.array_equal(pool.values(in_memory(p)), squares(torch.from_numpy(p)).numpy())
    assert seen == {3}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "side", "engine"),
    [
        ("resnet18", 64, "torch"),
        ("efficientnet-lite0", 96, "torch"),
        ("timm:vit_tiny_patch16_224", 224, "torch"),
        ("resnet18", 64, "openvino"),
    ],
)
def test_a_row_is_the_same_in_each_place_among_any_neighbours(tissue, name, side, engine, precision):
    """Bit by bit: which rows share a batch depends on the moment."""
    settings = EmbedSettings(device="cpu", precision=precision, engine=engine, batch_size=4)
    embedder = Embedder(load_encoder(name, "random"), settings)
    patches = tissue(9, side)
    expected = embedder.embed(in_memory(patches))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(9)[: 9 - seed]
        assert np.array_equal(embedder.embed(in_memory(patches[order])), expected[order])


@pytest.mark.parametrize("broken", ["copy", "compute"])
def test_the_stand_in_sees_a_wait_that_is_missing(broken):
    class Careless(LateDevice):
        def copy(self, source, target):
            mark = super().copy(source, target)
            return AtOnce().copy(source, target) if broken == "copy" else mark

        def compute(self, network, source, target, after):
            mark = super().compute(network, source, target, after)
            return AtOnce().copy(source, target) if broken == "compute" else mark

    (p,) = slides([40])
    assert not np.array_equal(lanes(Careless()).values(in_memory(p)), squares(torch.from_numpy(p)).numpy())

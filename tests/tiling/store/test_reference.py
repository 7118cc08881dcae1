"""Patches read from the slide itself by processes of their own: values, order, crashes, and readers that hang up."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from tiling.all_slides import tile_slides
from tiling.config import TilingConfig
from tiling.jobs.errors import SlideError
from tiling.manifest import SlideRow
from tiling.store import reference
from tiling.store.patches import PatchStore
from tiling.store.reference import patches_of_slide


@pytest.fixture(scope="module")
def stores(phantom_slide, tmp_path_factory):
    """The phantom's store with pixels, and the one that holds coordinates only; 25 patches or more."""
    found = []
    for pixels in ("zstd", "reference"):
        out = tmp_path_factory.mktemp(pixels)
        config = TilingConfig(patch_px=128, pixels=pixels, min_tissue=0.9, workers=1)
        assert tile_slides([SlideRow("s", phantom_slide)], config, out).counts == {"done": 1}
        found.append(PatchStore(out / "s.zarr"))
    assert len(found[0]) >= 25
    return found


def test_patches_are_those_of_the_store_whatever_their_order(stores, phantom_slide):
    pixels, coordinates = stores
    wanted = range(0, len(pixels), 2)
    with patches_of_slide(coordinates, phantom_slide, wanted) as patches:
        for places in (range(3, 9), range(3), range(9, len(wanted))):
            assert np.array_equal(patches.read(places), pixels.read([wanted[i] for i in places]))


def leave():
    os._exit(7)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    time.sleep(600)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (leave, "the process reading it ended with exit code 7"),
        (crash, "died with SIGSEGV"),
        (hang, "nothing happened for 1 s in the process reading it"),
    ],
)
def test_a_reader_that_crashes_or_hangs_up_is_a_fault_of_its_slide(stores, phantom_slide, monkeypatch, fault, said):
    monkeypatch.setattr(reference, "STALL_S", 1 if fault is hang else 600)
    monkeypatch.setattr(reference, "_read_part", Faulty(fault))
    with (
        patches_of_slide(stores[1], phantom_slide, range(24)) as patches,
        pytest.raises(SlideError, match=f"phantom.svs: .*{said}"),
    ):
        for start in range(0, 24, 8):
            patches.read(range(start, start + 8))


def test_a_read_that_waits_ends_when_it_is_stopped(stores, phantom_slide, monkeypatch):
    monkeypatch.setattr(reference, "_read_part", Faulty(hang))
    with patches_of_slide(stores[1], phantom_slide, range(24)) as patches:
        ended = []

        def read():
            with pytest.raises(SlideError, match="reading was stopped"):
                patches.read(range(24))
            ended.append(True)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.5)
        patches.stop()
        thread.join(60)
        assert ended


def test_patches_that_nobody_asks_for_are_not_read_on_and_on(stores, phantom_slide, monkeypatch):
    monkeypatch.setattr(reference, "_MOST_AHEAD", 8)
    monkeypatch.setattr(reference, "_read_part", SlowFirst())
    with patches_of_slide(stores[1], phantom_slide, range(0, 800)) as patches:
        assert (patches.read(range(8)) == 0).all()
        assert len(patches._there) < 100
        assert (patches.read(range(8, 800)) == 0).all()


class Faulty:
    """In a worker, what reads a part of the patches; the second part is at fault."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, part, store, slide):
        if part[0] == 8:
            self.fault()
        return [np.zeros((128, 128, 3), np.uint8)] * len(part)


class SlowFirst:
    def __call__(self, part, store, slide):
        if part[0] == 0:
            time.sleep(2)
        return [np.zeros((128, 128, 3), np.uint8)] * len(part)

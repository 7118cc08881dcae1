"""Where the JPEG images of patches are decoded: on CPU threads (libjpeg-turbo) or on the GPU (nvJPEG).

The two round a little differently, by one or two of 255. On the GPU compressed bytes cross the bus, not pixels.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from features.config import Decode
from features.embed.patch_source import PatchSource
from tiling.jobs.errors import RequestError
from tiling.jobs.listener import SILENT

_SAMPLE = 64  # patches on which the two are compared
_PART = 8


class Decoder:
    """Which of the two is used. `auto` measures both on the first patches, takes the faster one and says so.

    say: is told in whichever thread asks first.
    """

    def __init__(self, wanted: Decode, device: torch.device, say: Callable[[str], None] = SILENT.say) -> None:
        if wanted == "gpu" and device.type != "cuda":
            raise RequestError(f"--decode gpu needs a CUDA device, and the encoder runs on {device}; use --decode cpu")
        self._device, self._say = device, say
        self._choice: str = "cpu" if device.type != "cuda" else wanted
        self._lock = threading.Lock()

    def on_gpu(self, patches: PatchSource, threads: Executor) -> bool:
        """Whether the JPEG images of `patches` are to be decoded there. The first call takes a moment."""
        with self._lock:
            if self._choice == "auto":
                self._choice = self._faster(patches, threads)
        return self._choice == "gpu"

    def _faster(self, patches: PatchSource, threads: Executor) -> str:
        sample = range(min(_SAMPLE, patches.count))
        parts = [sample[i : i + _PART] for i in range(0, len(sample), _PART)]
        assert patches.read_jpeg is not None
        jpegs = patches.read_jpeg(sample)
        try:
            _decoded(jpegs, patches.side, self._device)  # starts nvJPEG, which takes long
            start = time.perf_counter()
            _decoded(jpegs, patches.side, self._device)
            torch.cuda.synchronize(self._device)
            gpu = len(sample) / (time.perf_counter() - start)
        except RuntimeError as error:  # a torchvision without nvJPEG
            self._say(f"patches are decoded on CPU threads; the GPU cannot ({error})")
            return "cpu"
        list(threads.map(patches.read, parts))
        start = time.perf_counter()
        list(threads.map(patches.read, parts))
        cpu = len(sample) / (time.perf_counter() - start)
        choice = "gpu" if gpu > cpu else "cpu"
        where = "on the GPU" if choice == "gpu" else "on CPU threads"
        self._say(f"patches are decoded {where} (CPU {cpu:.0f}/s, GPU {gpu:.0f}/s)")
        return choice


def decode_on_gpu(jpegs: list[bytes], patches: PatchSource, batch: range, device: torch.device) -> Tensor:
    """(n, P, P, 3) uint8 RGB on the device.

    A batch in which something is wrong is decoded by `patches.read`, whose SlideError names the patch.
    """
    try:
        return _decoded(jpegs, patches.side, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return torch.from_numpy(patches.read(batch)).to(device)


def _decoded(jpegs: list[bytes], side: int, device: torch.device) -> Tensor:
    compressed = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
    images = torch.stack(decode_jpeg(compressed, mode=ImageReadMode.RGB, device=device))
    if images.shape[2:] != (side, side):
        raise RuntimeError(f"found images of {tuple(images.shape[2:])} px, expected {side}")
    return images.permute(0, 2, 3, 1).contiguous()

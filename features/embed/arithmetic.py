"""In which numbers a network computes, and torch's own settings while it does."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def best_precision(device: torch.device) -> str:
    """bf16 where the hardware has it, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if fast else "fp32"


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to "bf16" or "fp16"; nothing for "fp32"."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def cast_weights(model: nn.Module, precision: str) -> None:
    """In place. Autocast would cast the weights of a frozen network again for each batch."""
    for module in model.modules() if precision in _AUTOCAST else ():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(_AUTOCAST[precision])


@contextmanager
def exact_arithmetic(lanes: int) -> Iterator[None]:
    """While `lanes` batches are embedded at once: a share of the cores for each, and the same results on the same GPU.

    Torch's settings are the process's own, and are found again as they were.
    """
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // lanes))
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.set_num_threads(threads)

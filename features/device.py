"""Where a network runs."""

import torch

from tiling.errors import RequestError


def pick_device(name: str) -> torch.device:
    """auto: the first CUDA GPU, else the CPU. Raises RequestError if the device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"--device {name} is not available here ({reason}); use --device auto") from error
    return device

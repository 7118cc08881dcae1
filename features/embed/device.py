"""Where networks run: a CPU or CUDA GPUs."""

import torch

from tiling.jobs.errors import RequestError


def pick_device(name: str) -> torch.device:
    """auto: the first CUDA GPU, else the CPU. Raises RequestError if the device is not there, or of another kind."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):
            reason = "expected auto, cpu, cuda or cuda:<index>"
        raise RequestError(f"--device {name} is not available here ({reason}); use --device auto") from error
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"--device {name}: networks run on cpu or cuda, not on {device.type}; use --device auto")
    return device


def pick_devices(names: str) -> list[torch.device]:
    """`pick_device` for several GPUs: "cuda:0,cuda:1", or "all" of them. Raises RequestError as it does."""
    if names == "all":
        if not torch.cuda.is_available():
            raise RequestError("--device all: no CUDA GPU is available here; use --device auto")
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    devices = [pick_device(name.strip()) for name in names.split(",")]
    if len(devices) > 1 and (len(set(devices)) < len(devices) or any(d.type == "cpu" for d in devices)):
        raise RequestError(f"--device {names}: several devices must be different GPUs, such as cuda:0,cuda:1, or all")
    return devices

"""What computes a network on a device: torch, torch after a minute's compilation, or OpenVINO's kernels for the CPU.

OpenVINO, which the extra `openvino` brings, computes the same network with the same weights. Each of its lanes has a
request of its own and does one batch at a time on one core.
"""

import copy
import importlib.util
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeAlias

import timm
import torch
import torchvision
from torch import Tensor, nn

from features.config import Engine
from features.embed.arithmetic import cast_weights
from features.encoders import Encoder
from tiling.jobs.errors import RequestError

Run: TypeAlias = Callable[[Tensor], Tensor]  # (n, 3, P, P) float32 → (n, D)
_VISION_TRANSFORMERS = (timm.models.VisionTransformer, torchvision.models.VisionTransformer)
_OPENVINO_PRECISION = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}  # int8: of what stays in floats


def pick_engine(engine: Engine, model: nn.Module, device: torch.device, precision: str) -> Engine:
    """What "auto" stands for: OpenVINO where it is installed and was clearly faster when measured, else torch.

    That is on x86 CPUs in fp32 and bf16, and always in int8, and not for plain vision transformers, as measured by
    tests/benchmarks/speed/bench_engines.py. Other engines are returned as they are.
    """
    if engine != "auto":
        return engine
    if precision == "int8":
        return "openvino"
    x86 = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    as_fast = any(isinstance(module, _VISION_TRANSFORMERS) for module in model.modules())
    faster = x86 and precision in ("fp32", "bf16") and not as_fast
    return "openvino" if faster and importlib.util.find_spec("openvino") else "torch"


def engine_runs(
    encoder: Encoder, engine: Engine, device: torch.device, precision: str, side: int, lanes: int
) -> list[Run]:
    """One for each lane of a device. The caller's network keeps its weights and its place. Raises RequestError.

    side: P, where the network is given images of one size; 0 for convolutional ones, which take any.
    """
    model = encoder.model
    if engine == "openvino":
        if device.type != "cpu":
            raise RequestError(f"--engine openvino computes on the CPU, not on {device}; use --engine torch")
        return _openvino_runs(
            _int8_model(encoder, side) if precision == "int8" else openvino_model(model, side), precision, lanes
        )
    if precision == "int8":
        raise RequestError(f"--precision int8 is computed by --engine openvino, not by {engine}")
    if precision != "fp32" or device.type != "cpu":
        model = copy.deepcopy(model)
    cast_weights(model, precision)
    model = model.to(device).to(memory_format=torch.channels_last)
    run: Run = torch.compile(model, dynamic=False) if engine == "compile" else model
    return [run] * lanes


def engine_version(engine: Engine, device: torch.device) -> str:
    """As feature files keep it, for example "torch 2.9.1 on cuda"."""
    if engine == "openvino":
        return f"openvino {metadata.version('openvino')} on {device.type}"
    version = torch.__version__.partition("+")[0]  # without the build, such as +cpu
    return f"torch {version}{', compiled' if engine == 'compile' else ''} on {device.type}"


def openvino_model(model: nn.Module, side: int) -> Any:
    """The network (n, 3, P, P) → (n, D) as OpenVINO sees it; side: as of `engine_runs`. Raises RequestError."""
    openvino = _openvino()
    shape = openvino.PartialShape([-1, 3, side or -1, side or -1])
    try:
        example = torch.zeros(1, 3, side or 224, side or 224)
        return openvino.convert_model(model.cpu(), example_input=example, input=shape)
    except Exception as error:  # of its front end, which knows no common base
        reason = str(error).strip().splitlines()[0]
        raise RequestError(f"--engine openvino cannot take this network ({reason}); use --engine torch") from error


def _int8_model(encoder: Encoder, side: int) -> Any:
    network = encoder.int8
    if network is None:
        raise RequestError("--precision int8 needs a network that extract-features has calibrated: --int8-network FILE")
    if network.input_px not in (0, side):
        asked = f"{side} px" if side else "any size"
        raise RequestError(
            f"--input-px: the int8 network was calibrated for images of {network.input_px} px, not of {asked}"
        )
    return _openvino().Core().read_model(network.structure.tobytes(), network.values.tobytes())


def _openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise RequestError("--engine openvino needs the extra `openvino`: pip install 'slidemil[openvino]'") from None
    return openvino


def _openvino_runs(network: Any, precision: str, lanes: int) -> list[Run]:
    settings = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[precision],
        "INFERENCE_NUM_THREADS": lanes,
        "NUM_STREAMS": lanes,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = _openvino().Core().compile_model(network, "CPU", settings)

    def run() -> Run:
        request = compiled.create_infer_request()
        return lambda images: torch.from_numpy(request.infer([images.contiguous().numpy()])[0].copy())

    return [run() for _ in range(lanes)]

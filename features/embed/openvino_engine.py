"""OpenVINO as the engine of a network on the CPU: the same network and weights, other kernels.

The extra `openvino` brings it. Each lane has a request of its own and does one batch at a time on one core.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tiling.jobs.errors import RequestError

_PRECISION = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def openvino_lanes(model: nn.Module, side: int, precision: str, lanes: int) -> list[Callable[[Tensor], Tensor]]:
    """Functions (n, 3, P, P) float32 → (n, D) float32, one a lane. Raises RequestError where OpenVINO is missing.

    side: P, where the network is given images of one size; 0 for convolutional ones, which take any.
    """
    try:
        import openvino
    except ImportError:
        raise RequestError("--engine openvino needs the extra `openvino`: pip install 'slidemil[openvino]'") from None
    shape = openvino.PartialShape([-1, 3, side or -1, side or -1])
    try:
        example = torch.zeros(1, 3, side or 224, side or 224)
        converted = openvino.convert_model(model.cpu().eval(), example_input=example, input=shape)
    except Exception as error:  # of its front end, which knows no common base
        reason = str(error).strip().splitlines()[0]
        raise RequestError(f"--engine openvino cannot take this network ({reason}); use --engine torch") from error
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISION[precision],
        "INFERENCE_NUM_THREADS": lanes,
        "NUM_STREAMS": lanes,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(converted, "CPU", settings)

    def lane() -> Callable[[Tensor], Tensor]:
        request = compiled.create_infer_request()
        return lambda images: torch.from_numpy(request.infer([images.contiguous().numpy()])[0].copy())

    return [lane() for _ in range(lanes)]

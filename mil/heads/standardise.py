"""Features as they lie in memory, float16, to what the first layer of a head takes, in one pass over them.

Conversion, standardisation, limits and dropout go block by block through the processor's cache: for large bags on a
CPU they cost as much as the layer itself if each makes a matrix of its own.
"""

from typing import Any

import torch
from torch import Tensor

_BLOCK_VALUES = 1 << 17  # 512 KiB in float32


def standardise(
    features: Tensor, mean: Tensor, std: Tensor, keep: Tensor | None = None, share: float = 1.0, limit: float = 0.0
) -> Tensor:
    """(N, D) in any precision, mean and std (D,) -> (x - mean) / std (N, D) in the precision of the mean.

    keep: (N, D) of 0 and 1, what dropout leaves; it is scaled up by 1 / share. limit: largest absolute value before
    dropout; 0: none. Has no gradient. Under torch.func.vmap models may have a mean and std each.
    """
    standardised: Tensor = _Standardise.apply(features, mean, std, keep, 1.0 if keep is None else share, limit)
    return standardised


class _Standardise(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, mean: Tensor, std: Tensor, keep: Tensor | None, share: float, limit: float) -> Tensor:
        """mean and std (…, D) -> (…, N, D)."""
        out = mean.new_empty(*mean.shape[:-1], *features.shape)
        rows = max(1, _BLOCK_VALUES // mean.numel()) if out.device.type == "cpu" else len(features)
        mean, scale = mean.unsqueeze(-2), (1 / (std * share)).unsqueeze(-2)
        for start in range(0, len(features), rows):
            block = out.narrow(-2, start, min(rows, len(features) - start))
            block.copy_(features[start : start + rows]).sub_(mean).mul_(scale)
            if limit:
                block.clamp_(-limit / share, limit / share)
            if keep is not None:
                block.mul_(keep[start : start + rows])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (None,) * 6

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        assert in_dims == (None, 0, 0, None, None, None), in_dims
        return _Standardise.forward(*inputs), 0

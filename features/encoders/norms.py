"""The batch norms of a network: which they are, and what they were trained on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

BATCH_NORMS = (nn.BatchNorm2d,)  # timm's, which bring their activation along, are subclasses


def norm_layers(model: nn.Module | None) -> dict[str, int]:
    """Names of a network's batch norms and their channels, in the order in which they are defined."""
    modules = model.named_modules() if model else ()
    return {name: module.num_features for name, module in modules if isinstance(module, BATCH_NORMS)}


def norm_reference(model: nn.Module) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of the inputs that a network's batch norms were trained on, each (ΣC,)."""
    modules = [model.get_submodule(name) for name in norm_layers(model)]
    mean, variance = (
        torch.cat([module.get_buffer(key).double().cpu() for module in modules]).numpy()
        for key in ("running_mean", "running_var")
    )
    return mean, variance


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is a batch norm that knows what it was trained on."""
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS)]
    return bool(norms) and all(norm.running_mean is not None for norm in norms)

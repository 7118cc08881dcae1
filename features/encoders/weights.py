"""Weights of an encoder: read from a file without running its code, loaded strictly, drawn, identified."""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tiling.jobs.errors import RequestError

StateDict = Mapping[str, Tensor]
_SHOWN_FAULTS = 10


def state_sha256(state: StateDict) -> str:
    """sha256 over the tensors in key order: name, type, shape and bytes of each."""
    sha = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def set_weights(
    model: nn.Module,
    weights: str,
    seed: int,
    default: Callable[[], StateDict],
    heads: tuple[str, ...] = (),
    source: str = "",
) -> None:
    """Give `model` the weights that are asked for: "default", "random" or a file. Raises RequestError.

    heads: prefixes of keys that the weights may hold and `model`, which has no classifier, does not.
    source: what an error calls the weights.
    """
    if weights == "random":
        _randomise(model, seed)
        return
    state = default() if weights == "default" else read_weights(Path(weights))
    kept = {key: value for key, value in state.items() if not key.startswith(heads)}
    load_strictly(model, kept, source or weights)


def read_weights(path: Path) -> StateDict:
    """The state dict in a file, also below `state_dict` or `model`, or behind `module.`. Never runs pickled code."""
    if not path.is_file():
        raise RequestError(f"--weights {path}: no such file; expected default, random or a weights file")
    try:
        safe = path.suffix == ".safetensors"
        state: object = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(
            f"--weights {path}: not a state dict of tensors in .pth or .safetensors form ({reason}); "
            "save one with torch.save(model.state_dict(), FILE)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RequestError(f"--weights {path}: holds a {type(state).__name__}, expected a state dict of tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_strictly(model: nn.Module, state: StateDict, source: str) -> None:
    """Load all of `state` into all of `model`. Raises RequestError with what does not fit."""
    try:
        model.load_state_dict(state)  # first, because modules know how to read the keys of their older versions
    except RuntimeError as error:
        raise RequestError(f"{source}: these weights are of another network {_misfit(model, state)}") from error


def _misfit(model: nn.Module, state: StateDict) -> str:
    own = model.state_dict()
    missing = [f"missing {k}" for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [f"unexpected {k}" for k in state if k not in own]
    reshaped = [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    faults = missing + unexpected + reshaped
    counts = f"({len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape)"
    more = [f"… and {len(faults) - _SHOWN_FAULTS} more"] if len(faults) > _SHOWN_FAULTS else []
    return "\n  ".join([counts, *faults[:_SHOWN_FAULTS], *more])


def _randomise(model: nn.Module, seed: int) -> None:
    """He initialisation, which keeps activations in range; the libraries' own lets GoogLeNet's fall to 1e-6.

    Uniform numbers, because they are the same on every processor; normal ones are not, in the last bit.
    What a library fills with one number (norms, layer scales) stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            else:
                nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            for parameter in module.parameters(recurse=False):
                if (parameter != parameter.flatten()[0]).any():  # position embeddings, attention projections
                    nn.init.uniform_(parameter, -0.035, 0.035, generator=generator)  # standard deviation 0.02

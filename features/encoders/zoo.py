"""An encoder by name: the zoo's own, presets of pathology, timm's and the hub's, and those of installed packages."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import EntryPoint, entry_points

import torch

from features.encoders.encoder import Encoder
from features.encoders.presets import PRESETS, find_preset, load_preset
from features.encoders.timm_zoo import PREFIX, load_lite0, load_timm
from features.encoders.torchvision_zoo import BACKBONES, load_torchvision
from tiling.jobs.errors import RequestError

GROUP = "slidemil.encoders"  # of entry points

ENCODERS: dict[str, Callable[[str, int], Encoder]] = {
    **{name: partial(load_torchvision, name) for name in BACKBONES},
    "efficientnet-lite0": load_lite0,
}


def load_encoder(name: str, weights: str = "default", seed: int = 0) -> Encoder:
    """An encoder by name. Raises RequestError for an unknown name and for weights that cannot be had.

    weights: "default", "random" (drawn from `seed`), or the path of a .pth or .safetensors file that holds a
    state dict with the names of torchvision (timm for efficientnet-lite0 and timm:…; for presets as their makers
    publish it), with or without classifier.
    """
    with _own_random_numbers(seed):
        if name in ENCODERS:
            return ENCODERS[name](weights, seed)
        if preset := find_preset(name):
            return load_preset(name, preset, weights, seed)
        if name.startswith(PREFIX):
            return load_timm(name, weights, seed)
        return _load_installed(name, weights, seed)


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Libraries draw initial weights from torch's global generator; the caller finds it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: torch.manual_seed reaches every GPU's
        yield


def _load_installed(name: str, weights: str, seed: int) -> Encoder:
    """An encoder that another package brings. Raises RequestError."""
    installed = entry_points(group=GROUP)
    found = {entry.value: entry for entry in installed if entry.name == name}
    if not found:
        raise RequestError(f"--encoder {name}: no such encoder; {_known(name, sorted(installed.names))}")
    if len(found) > 1:
        raise RequestError(f"--encoder {name}: {' and '.join(sorted(found))} both go by this name; uninstall one")
    (entry,) = found.values()
    encoder = _function(name, entry)(weights, seed)
    if not isinstance(encoder, Encoder):
        raise RequestError(f"--encoder {name}: {entry.value} returned a {type(encoder).__name__}, expected an Encoder")
    return encoder


def _function(name: str, entry: EntryPoint) -> Callable[[str, int], object]:
    try:
        function: Callable[[str, int], object] = entry.load()
    except (ImportError, AttributeError) as error:
        raise RequestError(f"--encoder {name}: cannot import {entry.value}, which should make it ({error})") from error
    return function


def _known(name: str, installed: list[str]) -> str:
    names = [*ENCODERS, *PRESETS, *installed]
    close = difflib.get_close_matches(name, names)
    near = f"close to it are {', '.join(close)}; " if close else ""
    return f"{near}the encoders are {', '.join(names)}, {PREFIX}NAME and {PREFIX}hf-hub:OWNER/NAME"

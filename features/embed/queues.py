"""What a device does in its own time: copies of patches and kernels, each in order, and marks to wait for.

`AtOnce` is a CPU, `Cuda` a GPU with one stream for each of the two. Whoever begins something must not touch what it
reads or writes before its mark was waited for.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Network: TypeAlias = Callable[[Tensor], Tensor]  # (n, P, P, 3) uint8 → (n, D) float32


class Mark(Protocol):
    """Something that was begun."""

    def synchronize(self) -> None:
        """Wait until it is done. Raises what it raised."""


class Queues(Protocol):
    """One device. Used by one thread at a time."""

    depth: int  # batches that may be under way at once, being decoded or on the device; 1: nothing runs by itself

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host that `copy` and `compute` may use while the host goes on."""

    def beside(self, host: Tensor) -> Tensor:
        """Memory of the device for what is in `host`."""

    def copy(self, source: Tensor, target: Tensor) -> Mark:
        """Begin to copy from the host to the device."""

    def compute(self, network: Network, source: Tensor, target: Tensor, after: Mark) -> Mark:
        """Begin network(source) on the device, after `after`, and bring it to `target` on the host."""


class Done:
    def synchronize(self) -> None:
        pass


class AtOnce:
    """A core of a CPU. The network reads what was decoded where it lies."""

    depth = 1

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def beside(self, host: Tensor) -> Tensor:
        return host

    def copy(self, source: Tensor, target: Tensor) -> Mark:
        return Done()

    def compute(self, network: Network, source: Tensor, target: Tensor, after: Mark) -> Mark:
        target.copy_(network(source))
        return Done()


class Cuda:
    """A GPU."""

    depth = 4  # two on the device, so that it never waits for the host, and two that are being decoded

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies, self._kernels = torch.cuda.Stream(device), torch.cuda.Stream(device)
        torch.cuda.synchronize(device)  # the network's weights are there

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def beside(self, host: Tensor) -> Tensor:
        return torch.empty_like(host, device=self._device, pin_memory=False)

    def copy(self, source: Tensor, target: Tensor) -> Mark:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
            done: Mark = self._copies.record_event()
        return done

    def compute(self, network: Network, source: Tensor, target: Tensor, after: Mark) -> Mark:
        assert isinstance(after, torch.cuda.Event)
        with torch.cuda.stream(self._kernels):
            self._kernels.wait_event(after)
            target.copy_(network(source), non_blocking=True)
            done: Mark = self._kernels.record_event()
        return done

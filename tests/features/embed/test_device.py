"""Devices by name."""

import pytest
import torch

from features.embed.device import pick_devices
from tiling.jobs.errors import RequestError

CPU = torch.device("cpu")


def test_devices_that_are_not_there_are_wrong_requests():
    assert pick_devices("cpu") == [CPU]
    for names in ("cpu,cpu", "cpu,cuda:0", "tpu", "meta", "mkldnn", "mps", "cuda:-1", ""):
        with pytest.raises(RequestError, match=f"--device {names.split(',')[-1] if names == 'cpu,cuda:0' else names}"):
            pick_devices(names)
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="no CUDA GPU"):
            pick_devices("all")

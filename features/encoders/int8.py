"""CONTRACT `int8-network.safetensors` in a folder of feature files: the network in 8-bit integers, `--precision int8`.

Tensors `structure` and `values`, (n,) uint8: the XML and the numbers that OpenVINO writes of it. Metadata, one JSON
text under the key `slidemil`: format, version, and the other fields of `Int8Network`. A file is made once, of evenly
spaced patches of all slides of the request, and taken as it is from then on, so that a job that was killed, each part
of an array job, and slides that come later are embedded with the same network. Feature files keep its `calibration`,
and are therefore never mixed with those of another one, or of another precision.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.encoders.kept import read_kept, write_kept

FORMAT, VERSION = "slidemil-int8-network", 1
FILE = "int8-network.safetensors"
NEAR = 0.98  # of the mean cosine to fp32, below which a user is warned


@dataclass(frozen=True, eq=False)
class Int8Network:
    """A network whose weights and activations are 8-bit integers, and how near it comes to the one in fp32."""

    structure: NDArray[np.uint8]
    values: NDArray[np.uint8]
    weights_sha256: str  # of the network in fp32
    input_px: int  # side of the images that it takes; 0: any
    patches: int  # that it was calibrated on
    slides: int  # that these and those held back are of
    held_back: int  # patches on which it was compared
    cosine_mean: float  # of the features of each of those to its features in fp32
    cosine_lowest: float
    openvino: str  # version
    nncf: str  # version

    @property
    def calibration(self) -> str:
        """As feature files keep it: JSON, with a sha256 of the network itself."""
        sha = hashlib.sha256(self.structure.data)
        sha.update(self.values.data)
        return json.dumps({"sha256": sha.hexdigest(), **_known(self)})

    @property
    def said(self) -> str:
        return (
            f"int8, calibrated on {self.patches} patches (slides: {self.slides}); cosine to fp32 of "
            f"{self.held_back} others: {self.cosine_mean:.4f} on average, {self.cosine_lowest:.4f} at least"
        )


def _known(network: Int8Network) -> dict[str, str | int | float]:
    return {entry.name: getattr(network, entry.name) for entry in fields(network)[2:]}


def write_int8(path: Path, network: Int8Network) -> None:
    write_kept(path, (FORMAT, VERSION), {"structure": network.structure, "values": network.values}, _known(network))


def read_int8(path: Path) -> Int8Network:
    """Raises RequestError unless it is a file of an int8 network of a version that is known."""
    tensors, known = read_kept(path, (FORMAT, VERSION), "--precision int8")
    return Int8Network(tensors["structure"], tensors["values"], **known)

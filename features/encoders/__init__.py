"""The encoders: networks that turn a patch into a vector, each with the preprocessing that it was trained with.

`load_encoder` finds them by name: torchvision's (`torchvision_zoo`), pathology models (`presets`), any of timm's and
the Hugging Face hub's (`timm_zoo`), and your own: a package of yours holds a function (weights, seed) → `Encoder`

    from pathlib import Path
    from features.encoders import Encoder, Preprocessing, freeze, read_weights, set_weights

    def my_net(weights: str, seed: int) -> Encoder:
        model = MyNet()  # (B, 3, 224, 224) → (B, 384)
        set_weights(model, weights, seed, default=lambda: read_weights(Path("/models/my-net.safetensors")))
        preprocessing = Preprocessing((0.7, 0.58, 0.7), (0.21, 0.23, 0.18), input_px=224, interpolation="bicubic")
        return freeze("my-net", model, weights, seed, dim=384, preprocessing=preprocessing)

and names it in its pyproject.toml; `extract-features --encoder my-net` finds it where both are installed.

    [project.entry-points."slidemil.encoders"]
    my-net = "my_package:my_net"

A convolutional network whose batch norms each follow their convolution is faster through `merge_norms(freeze(…))`.
"""

from features.encoders.encoder import Encoder, freeze, merge_norms
from features.encoders.preprocess import Preprocessing
from features.encoders.presets import PRESETS
from features.encoders.weights import read_weights, set_weights, state_sha256
from features.encoders.zoo import ENCODERS, load_encoder

__all__ = [
    "ENCODERS",
    "PRESETS",
    "Encoder",
    "Preprocessing",
    "freeze",
    "load_encoder",
    "merge_norms",
    "read_weights",
    "set_weights",
    "state_sha256",
]

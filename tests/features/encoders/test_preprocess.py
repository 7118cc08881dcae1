"""What preprocessing gives on fixed pixels, held to a file that bears the version of its rules.

Where it was changed on purpose: raise RULES in features/encoders/preprocess.py, then
`python tests/features/encoders/test_preprocess.py` writes the file of the new version; delete the old one.
"""

from pathlib import Path

import numpy as np
import torch

from features.encoders.preprocess import HALF, RULES, Preprocessing

GOLDEN = Path(__file__).parents[2] / "golden"
FILE = GOLDEN / f"preprocessing-{RULES}.npz"


def outputs():
    y, x = np.mgrid[:64, :64]
    picture = np.stack([(x * 4) % 256, (y * 4) % 256, (x * y * 7) % 256], 0).astype(np.uint8)
    images = torch.from_numpy(picture[None])
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return {
        "as it is": Preprocessing(*imagenet).apply(images).numpy(),
        "bilinear": Preprocessing(*imagenet, 48).apply(images).numpy(),
        "bicubic": Preprocessing(HALF, HALF, 48, interpolation="bicubic").apply(images).numpy(),
        "enlarged": Preprocessing(HALF, HALF, 96).apply(images).numpy(),
    }


def test_preprocessing_gives_what_its_version_gave():
    assert list(GOLDEN.glob("preprocessing-*")) == [FILE]
    found = outputs()
    with np.load(FILE) as expected:
        assert found.keys() == set(expected)
        for name, values in found.items():
            off = np.abs(values - expected[name])  # a step of 8-bit pixels is at least 0.0078
            assert values.shape == expected[name].shape and off.max() < 0.02 and (off > 1e-3).mean() < 0.01, name


if __name__ == "__main__" and not FILE.exists():
    np.savez_compressed(FILE, **outputs())

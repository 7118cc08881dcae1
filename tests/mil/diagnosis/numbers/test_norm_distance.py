"""Real and drawn tissue lie between photographs and noise."""

import io
import tarfile

import numpy as np
from drawn_cohort import phantom_of
from PIL import Image

from features.encoders import load_encoder
from mil.diagnosis.numbers.norm_distance import gap_of_images
from mil.diagnosis.numbers.reference_images import noise, photographs


def test_the_gap_of_real_and_drawn_tissue_lies_between_photographs_and_noise(data):
    encoder = load_encoder("efficientnet-lite0")
    sets = {"phantom": np.concatenate([phantom_of(number)[:4] for number in range(4)])}
    tiles, names = [], sorted((data / "ucsb_breast").glob("*.tar.xz"))
    with tarfile.open(names[0]) as archive:
        for member in [m for m in archive.getmembers() if m.name.endswith(".tif")][:12]:
            file = archive.extractfile(member)
            tiles.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))[224:448, 224:448])
    sets["UCSB"] = np.stack(tiles)
    with Image.open(data / "slides/CMU-1-Small-Region.svs") as image:
        slide = np.asarray(image.convert("RGB"))
    corners = [(y, x) for y in range(0, 2600, 224) for x in range(0, 1900, 224)]
    cut = [slide[y : y + 224, x : x + 224] for y, x in corners]
    sets["CMU-1"] = np.stack([p for p in cut if p.mean() < 225][:48:4])
    photographs_, noise_ = (gap_of_images(encoder, images).mean() for images in (photographs()[::2], noise()[:3]))
    for name, images in sets.items():
        assert len(images) >= 12, name
        halves = [gap_of_images(encoder, images[start::2]).mean() for start in (0, 1)]
        assert 1.2 * photographs_ < min(halves) and max(halves) < 0.8 * noise_, name
        assert abs(halves[0] - halves[1]) < 0.1 * (noise_ - photographs_), name

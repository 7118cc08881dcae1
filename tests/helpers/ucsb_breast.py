"""The UCSB breast images as a cohort: 58 images, and patients are the 10 source slides that they were cut from."""

import re
import tarfile
from pathlib import Path


def unpack(archives: Path, folder: Path) -> Path:
    """Lay the images of `archives`/*.tar.xz in `folder`; the path of their slide table, target `diagnosis`."""
    for archive in sorted(archives.glob("*.tar.xz")):
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    rows = ["slide_id,path,patient_id,diagnosis"]
    for image in sorted(folder.glob("*.tif")):
        source = re.match(r"ytma\d+_\d+", image.name)
        assert source, f"{image.name} does not begin with its source slide"
        diagnosis = "malignant" if "malignant" in image.name else "benign"
        rows.append(f"{image.stem},{image.name},{source[0]},{diagnosis}")
    table = folder / "slides.csv"
    table.write_text("\n".join(rows) + "\n")
    return table

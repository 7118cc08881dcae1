"""What very many slides cost before any work is done: start-up where all is finished, summary, pages, the audit.

Stub slides of a few bytes, each with a true patch store of nine patches, its quality picture and facts, and a true
feature file of 20 kB. Each part runs in a process of its own; seconds, the processor's seconds with those of loading
modules (on a busy machine the truer figure), its peak memory without that of workers, and the exponent with which the
seconds grow from the size before (1: linear, 2: quadratic). Parts below a command are measured alone, when their
modules are loaded. Last, what one lock costs in a folder of many, and one search of the leakage audit.

    python tests/benchmarks/speed/bench_scale.py [SLIDES ...]      default 1000 10000
"""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from features.config import FeatureConfig
from tiling.config import TilingConfig
from tiling.jobs.locks import lock
from tiling.manifest import SlideRow
from tiling.slides.files import slide_fingerprint

SEED = "seedling000"  # as long as the names of the others
ROOT = Path(__file__).parents[3]
TILING = TilingConfig(mpp=2.0, patch_px=64, workers=2)
ENCODER = FeatureConfig(encoder="mobilenet-v3-small", weights="random", device="cpu")
PARTS = {
    "tile-slides, all finished, first": "tile-first",
    "tile-slides, all finished": "tile",
    "  of which summary.json": "summary",
    "  of which qc.html": "page",
    "extract-features, all finished, first": "extract-first",
    "extract-features, all finished": "extract",
    "  of which statistics.json": "statistics",
    "train-mil: cohort loading": "cohort",
    "train-mil: loading and audit": "audit",
}
MODULES = {  # that a part needs, loaded before its clock starts
    "summary": ("tiling.jobs.outcomes", "tiling.manifest"),
    "page": ("tiling.qc.page",),
    "statistics": ("features.encoders.torchvision_zoo", "features.statistics.cohort"),
    "cohort": ("mil.cohort.cohort",),
    "audit": ("mil.cohort.leakage",),
}
FOLDERS = (1000, 10_000, 100_000)
LOCKS = 100


def make(folder: Path, slides: int) -> None:
    """The inputs and outputs of a finished cohort: `slides.csv`, slides, patches, features."""
    from features.pipeline import extract_features, find_stores  # here, since a process's peak counts its parent's too
    from tiling.all_slides import tile_slides
    from tiling.phantom.phantom import PhantomSpec, write_phantom

    seed = folder / "seed"
    seed.mkdir(parents=True)
    write_phantom(PhantomSpec(width_px=2048, height_px=2048, seed=0, tumour=False), seed / "s.svs")
    assert tile_slides([SlideRow(SEED, seed / "s.svs")], TILING, seed / "patches").counts == {"done": 1}
    assert extract_features(find_stores(seed / "patches"), ENCODER, seed / "patches", seed / "features").counts
    for name in ("slides", "patches/qc", "features"):
        (folder / name).mkdir(parents=True)
    rng, template = np.random.default_rng(0), _template(seed / f"features/{SEED}.h5")
    lines = ["slide_id,path,patient_id,tumour"]
    for number in range(slides):
        slide_id = f"slide{number:06d}"
        lines.append(f"{slide_id},slides/{slide_id}.svs,p{number},{'yes' if number % 2 else 'no'}")
        path = folder / f"slides/{slide_id}.svs"
        path.write_text(slide_id)
        of_slide = {"slide_id": slide_id, "digest": f"{number:064x}", "fingerprint": slide_fingerprint(path)}
        _stub_store(seed / "patches", folder / "patches", of_slide)
        (folder / f"features/{slide_id}.h5").write_bytes(_stub_features(template, of_slide, rng))
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    (seed / f"patches/qc/{SEED}.jpg").touch()  # a picture is newer than its store


def _stub_store(seed: Path, out: Path, of_slide: dict[str, str]) -> None:
    """All that a look does not read lies in the one true store: a file system has room for 100,000 stores then."""
    true, store = seed / f"{SEED}.zarr", out / f"{of_slide['slide_id']}.zarr"
    (store / "coords_l0").mkdir(parents=True)
    for array in (*true.glob("*/"), true / "coords_l0/c"):
        if array.name != "coords_l0":
            (store / array.relative_to(true)).symlink_to(array)
    shutil.copyfile(true / "coords_l0/zarr.json", store / "coords_l0/zarr.json")
    root = json.loads((true / "zarr.json").read_text())
    root["attributes"] |= of_slide
    (store / "zarr.json").write_text(json.dumps(root))
    facts = json.loads((seed / f"qc/{SEED}.json").read_text())
    facts |= {key: of_slide[key] for key in ("slide_id", "digest")}
    (out / f"qc/{of_slide['slide_id']}.jpg").symlink_to(seed / f"qc/{SEED}.jpg")
    (out / f"qc/{of_slide['slide_id']}.json").write_text(json.dumps(facts))


def _template(path: Path) -> tuple[bytes, dict[str, str], tuple[int, ...], int]:
    """A feature file: its bytes, names in it, shape of its features, where these begin."""
    with h5py.File(path, "r") as file:
        keys = {"slide_id": "slide_id", "digest": "store_digest", "fingerprint": "slide_fingerprint"}
        names = {key: str(file.attrs[name]) for key, name in keys.items()}
        features = file["features"]
        return path.read_bytes(), names, features.shape, features.id.get_chunk_info(0).byte_offset


def _stub_features(
    template: tuple[bytes, dict[str, str], tuple[int, ...], int], of_slide: dict[str, str], rng: np.random.Generator
) -> bytes:
    """The one true file with other names and features: written byte by byte, since HDF5 itself would take long."""
    image, names, shape, start = template
    values = rng.normal(size=shape).astype(np.float16).tobytes()
    stub = image[:start] + values + image[start + len(values) :]
    for key, name in names.items():
        assert len(name) == len(of_slide[key]) and name.encode() in stub, name
        stub = stub.replace(name.encode(), of_slide[key].encode())
    return stub


def part(name: str, folder: Path) -> None:
    """Do one part, in this process, and print its seconds."""
    patches, features, table = folder / "patches", folder / "features", folder / "slides.csv"
    tile = partial(_command, "tiling.cli", table, "--out", patches, "--config", folder / "tile.json")
    extract = partial(_command, "features.cli", patches, "--out", features, "--config", folder / "extract.json")
    work = {
        "make": lambda: make(folder, int(folder.name)),
        "tile-first": tile,  # slide files are read
        "tile": tile,  # they are known
        "extract-first": extract,  # statistics.json is made
        "extract": extract,
        "summary": lambda: _summary(patches, table),
        "page": lambda: _page(patches),
        "statistics": lambda: _statistics(features),
        "cohort": lambda: _cohort(features, table),
        "audit": lambda: _audit(features, table),
    }[name]
    for module in MODULES.get(name, ()):
        importlib.import_module(module)
    start = time.perf_counter()
    work()
    print("seconds", time.perf_counter() - start, flush=True)


def _command(module: str, *arguments: object) -> None:
    code = f"import sys; from {module} import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0 and "done" not in done.stdout.split("→")[0].split(":")[1], done.stdout + done.stderr


def _summary(patches: Path, table: Path) -> None:
    from tiling.jobs.outcomes import Outcome, write_outcomes
    from tiling.manifest import load_table

    rows = load_table(table, needs_path=False)
    outcomes = [Outcome(row.slide_id, "failed", f"{row.path}: damaged") for row in rows]
    folders = {row.slide_id: [row.path.parent] for row in rows if row.path}
    write_outcomes(outcomes, patches.parent / "summary.json", patches.parent / "failures.csv", folders)


def _page(patches: Path) -> None:
    from tiling.qc.page import write_qc_page

    write_qc_page(patches)


def _statistics(features: Path) -> None:
    from features.encoders import load_encoder
    from features.statistics.cohort import write_cohort_statistics

    (features / "statistics.json").unlink(missing_ok=True)
    write_cohort_statistics(features, load_encoder(ENCODER.encoder, ENCODER.weights, 0))


def _cohort(features: Path, table: Path):
    from mil.cohort.cohort import load_cohort

    return load_cohort(features, table, "tumour")


def _audit(features: Path, table: Path) -> None:
    from mil.cohort.leakage import same_slides

    assert not same_slides(_cohort(features, table))


def measured(name: str, folder: Path) -> tuple[float, float, float]:
    """Seconds, the processor's, and the peak memory of a process and of those that it started, each alone, in GB."""
    command = [sys.executable, __file__, "--part", name, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, name
    return float(said.split()[-1]), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def lock_ms(slides: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        stores = [Path(name, f"slide{number:06d}.zarr") for number in range(slides)]
        for store in stores:
            store.mkdir()
        start = time.perf_counter()
        for store in stores[:LOCKS]:
            with lock(store):
                pass
        return (time.perf_counter() - start) / LOCKS * 1000


def search_s(slides: int) -> float:
    """Of the audit, among one extreme patch of each slide, as random as can be; the processor's seconds."""
    from mil.cohort.neighbours import close_pairs

    rng = np.random.default_rng(0)
    points = rng.normal(size=(slides, 24))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    start = time.process_time()
    close_pairs(points, 0.2, 8, rng)
    return time.process_time() - start


def main(sizes: list[int]) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in PARTS.values()}
    for slides in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, str(slides))
            made_s, *_ = measured("make", folder)
            (folder / "tile.json").write_text(json.dumps({"mpp": 2.0, "patch_px": 64, "workers": 2}))
            given = {key: getattr(ENCODER, key) for key in ("encoder", "weights", "device")}
            (folder / "extract.json").write_text(json.dumps(given))
            print(f"{slides} slides, made in {made_s:.0f} s", flush=True)
            for text, short in PARTS.items():
                found[short].append(measured(short, folder))
                seconds, processor, memory = found[short][-1]
                slope = ""
                if len(found[short]) > 1:
                    before = found[short][-2][0]
                    grown = math.log(seconds / before) / math.log(slides / sizes[sizes.index(slides) - 1])
                    slope = f", exponent {grown:.2f}"
                print(
                    f"  {text:34} {seconds:8.2f} s {processor:8.2f} s of processor {memory:6.2f} GB{slope}", flush=True
                )
    locks = ", ".join(f"{lock_ms(slides):.2f} ms among {slides:,} slides" for slides in FOLDERS)
    print(f"a lock, mean of {LOCKS}: {locks}", flush=True)
    searches = ", ".join(f"{search_s(slides):.2f} s among {slides:,} slides" for slides in FOLDERS)
    print(f"one search of the audit's sixteen: {searches}", flush=True)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if sys.argv[1:2] == ["--part"]:
        part(sys.argv[2], Path(sys.argv[3]))
    else:
        main([int(size) for size in sys.argv[1:]] or [1000, 10_000])

"""Damage slide files in many ways and tile them: each ends done, empty or failed with a reason, and the job lives.

    python tests/stress/mutate_slides.py [NUMBER] [SEED]

Bytes are flipped, files cut, and TIFF tags given absurd values (sizes, offsets, counts, compressions, types). Real
slides come from the folder in SLIDE_MIL_DATA, a phantom .svs and .tiff are made. Exit code 1 if the job ends by
itself, hangs, leaves an outcome out, or takes a process above RSS_MAX of memory; then it says with which slides,
and their files are kept.
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import tifffile

from tiling.phantom.phantom import PhantomSpec, write_phantom

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from real_data import DATA

ROOT = Path(__file__).parents[2]
RSS_MAX = 1.5 * 2**30
BATCH = 50  # slides a run of tile-slides
HANG_S = 20.0  # a slide may take, on average of its batch, beside a minute for the run
MPP = 0.499
BIG = (0, 1, 7, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1)
COMPRESSIONS = (0, 1, 2, 3, 5, 6, 7, 8, 32773, 33003, 33005, 34712, 50000, 50001, 65535)
TAGS = {
    "size": ("ImageWidth", "ImageLength"),
    "tile": ("TileWidth", "TileLength", "RowsPerStrip"),
    "place": ("TileOffsets", "StripOffsets", "TileByteCounts", "StripByteCounts", "SubIFDs", "JPEGTables"),
    "pixel": ("BitsPerSample", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "SampleFormat"),
    "scale": ("XResolution", "YResolution", "ResolutionUnit", "ImageDescription", "Orientation", "Predictor"),
}


def main(number: int, seed: int) -> int:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # of the damaged file that is damaged once more
    rng = random.Random(seed)
    work = Path(tempfile.mkdtemp(prefix="mutants-"))
    sources = _sources(work)
    begun, kinds, seen, faults, peak = time.monotonic(), Counter[str](), Counter[str](), list[str](), 0
    for start in range(0, number, BATCH):
        folder = work / f"batch{start}"
        folder.mkdir()
        made = {}
        for i in range(start, min(start + BATCH, number)):
            kind, path = mutate(rng.choice(sources), folder, f"m{i:04d}", rng)
            kinds[kind] += 1
            made[f"m{i:04d}"] = (kind, path)
        statuses, batch_faults, batch_peak = tile(folder, made)
        seen.update(statuses)
        peak = max(peak, batch_peak)
        faults += batch_faults
        if not batch_faults:
            shutil.rmtree(folder)
    print(f"{number} mutants in {time.monotonic() - begun:.0f} s: {dict(seen)}; peak {peak / 2**20:.0f} MiB a process")
    print("kinds of damage:", ", ".join(f"{n} {k}" for k, n in sorted(kinds.items())))
    for fault in faults:
        print("FAILED:", fault)
    if not faults:
        shutil.rmtree(work)
    return 1 if faults else 0


def _sources(work: Path) -> list[Path]:
    found = [p for p in (DATA / "slides").rglob("*") if p.suffix in (".svs", ".tiff") and p.name != "broken.svs"]
    found += [DATA / "slides/dicom_cmu1"] * 2 if (DATA / "slides/dicom_cmu1").is_dir() else []
    for suffix in (".svs", ".tiff"):
        write_phantom(PhantomSpec(width_px=1504, height_px=1504, seed=1, tumour=False), work / f"phantom{suffix}")
        found += [work / f"phantom{suffix}"] * 2
    return sorted(found)


# ---------------------------------------------------------------- damage


def mutate(source: Path, folder: Path, name: str, rng: random.Random) -> tuple[str, Path]:
    """A damaged copy of `source` and the kind of damage."""
    if source.is_dir():
        path = folder / name
        shutil.copytree(source, path, copy_function=shutil.copyfile)
        path.chmod(0o755)
        files = sorted(p for p in path.iterdir() if p.suffix == ".dcm")
        kind = _damage_bytes(rng.choice(files), rng)
        if rng.random() < 0.1:
            rng.choice(files).unlink()
            kind = "file missing"
        return f"dicom: {kind}", path
    path = folder / f"{name}{source.suffix}"
    shutil.copyfile(source, path)
    if rng.random() < 0.35:
        return _damage_bytes(path, rng), path
    kinds = {_damage_tag(path, rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))}
    return "/".join(sorted(kinds)), path


def _damage_bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip head", "zero", "cut", "cut short"))
    size = len(content)
    if kind == "cut":
        content = content[: rng.randrange(size)]
    elif kind == "cut short":
        content = content[: rng.randrange(min(size, 3000))]
    elif kind == "zero":
        at = rng.randrange(size)
        content[at : at + 5000] = bytes(len(content[at : at + 5000]))
    else:
        reach = min(size, 4000) if kind == "flip head" else size
        for _ in range(rng.choice((1, 3, 30, 300))):
            content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return kind


def _damage_tag(path: Path, rng: random.Random) -> str:
    """Overwrite the value, count, type or place of one tag of one page."""
    try:
        with tifffile.TiffFile(path) as tiff:
            order, offset_format = tiff.byteorder, "Q" if tiff.is_bigtiff else "I"
            page = tiff.pages[rng.randrange(min(len(tiff.pages), 8)) if rng.random() < 0.4 else 0]
            group = rng.choice([*sorted(TAGS), "compression", "count", "type", "size", "tile"])
            pool = {"compression": ("Compression",)}.get(group, TAGS.get(group, tuple(t.name for t in page.tags)))
            tags = [t for t in page.tags if t.name in pool] or list(page.tags)
            tag = rng.choice(tags)
            entry, value_at, width = tag.offset, tag.valueoffset, struct.calcsize(order + tag.dataformat[-1])
            count = tag.count
    except Exception:  # an earlier damage
        return _damage_bytes(path, rng)
    content = bytearray(path.read_bytes())
    if group == "count":
        _put(content, entry + 4, order + offset_format, rng.choice(BIG))
    elif group == "type":
        _put(content, entry + 2, order + "H", rng.randrange(0, 20))
    elif group == "compression":
        _put(content, value_at, order + "H", rng.choice(COMPRESSIONS))
    else:
        for i in {0, rng.randrange(max(1, count)), max(0, count - 1)}:
            _put(content, value_at + i * width, order + {1: "B", 2: "H", 4: "I", 8: "Q"}[width], rng.choice(BIG))
    path.write_bytes(content)
    return group


def _put(content: bytearray, at: int, form: str, value: int) -> None:
    size = struct.calcsize(form)
    if at + size <= len(content):
        struct.pack_into(form, content, at, value & (2 ** (8 * size) - 1))


# ---------------------------------------------------------------- tiling


def tile(folder: Path, made: dict[str, tuple[str, Path]]) -> tuple[Counter[str], list[str], int]:
    """Statuses, faults, and the largest memory of a process in bytes, of one run over the mutants."""
    out, table = folder / "out", folder / "slides.csv"
    table.write_text("slide_id,path,mpp\n" + "".join(f"{i},{path},{MPP}\n" for i, (_, path) in made.items()))
    script = Path(sys.executable).parent / "tile-slides"
    log = folder / "log.txt"
    with log.open("w") as stream:
        running = subprocess.Popen(
            [script, table, "--out", out, "--mpp", "1", "--patch-px", "128", "--workers", "2"],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        memory = watch(running, out, 60 + HANG_S * len(made))
    said = {i: f"{i} ({made[i][0]}, {made[i][1]})" for i in made}
    faults = [f"{said.get(i, i)}: {n / 2**20:.0f} MiB" for i, n in memory.items() if n > RSS_MAX]
    peak = max(memory.values(), default=0)
    if running.returncode is None:
        held = ", ".join(said[p.name.removesuffix(".zarr.lock")] for p in out.glob("*.lock"))
        os.killpg(running.pid, signal.SIGKILL)
        return Counter(), [*faults, f"hung up at {held}"], peak
    if running.returncode not in (0, 1) or "Traceback" in log.read_text():
        return Counter(), [*faults, f"the job ended with {running.returncode}, see {log}"], peak
    slides = json.loads((out / "summary.json").read_text())["slides"]
    for i in made:
        outcome = slides.get(i, {"status": "nothing", "reason": ""})
        if outcome["status"] not in ("done", "empty", "failed") or (
            outcome["status"] != "done" and not outcome["reason"]
        ):
            faults.append(f"{said[i]}: {outcome}")
        if re.search(r"died with|nothing happened|^\w+(Error|Exception|Warning)\b", outcome["reason"]):
            print(f"  worth a look: {i} ({made[i][0]}): {outcome['reason'][:300]}", flush=True)
    return Counter(_short(o) for o in slides.values()), faults, peak


def _short(outcome: dict[str, str]) -> str:
    died = "died" in outcome["reason"] or "nothing happened" in outcome["reason"]
    return f"{outcome['status']}, its process died" if died else outcome["status"]


def watch(running: subprocess.Popen[bytes], out: Path, limit_s: float) -> dict[str, int]:
    """Slide id → highest memory of the process that did it, while it did it; until the run ends or `limit_s`.

    What a process has needed once it keeps on record, so a slide is blamed only for a new high.
    """
    memory: dict[str, int] = {}
    known: dict[int, int] = {}
    end = time.monotonic() + limit_s
    while running.poll() is None and time.monotonic() < end:
        for lock in out.glob("*.lock"):
            try:
                pid = int(json.loads(lock.read_text())["pid"])
                status = Path(f"/proc/{pid}/status").read_text()
                high = int(status.split("VmHWM:")[1].split()[0]) * 1024
            except (OSError, ValueError, IndexError):
                continue
            if high > known.get(pid, 0):
                known[pid] = memory[lock.name.removesuffix(".zarr.lock")] = high
        time.sleep(0.02)
    return memory


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 500, numbers[1] if len(numbers) > 1 else 0))

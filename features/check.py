"""`extract-features --check`: what a run would do, and how long it would take, in seconds and without a trace."""

import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from features.config import FeatureConfig
from features.embed.arithmetic import exact_arithmetic
from features.embed.patch_source import evenly_spaced, patches_of
from features.embed.pipe import Together
from features.embed.scale import seen_as
from features.encoders.int8 import FILE as INT8_FILE
from features.making import Making, decoder_of, makings
from features.statistics.adapted_norms import FILE as NORMS_FILE
from tiling.jobs.errors import SlideError
from tiling.jobs.memory import available_bytes
from tiling.manifest import SlideRow, select_part
from tiling.store.patches import PatchStore

_PATCHES, _LONGEST_S = 64, 15  # that are embedded to know the speed, and about how long that may take
_SLIDES = 8  # that they are of
_SHOWN = 5  # faults
_FILE_BYTES = 16_384  # of a feature file beside its features and coordinates


Line: TypeAlias = tuple[str, str]  # what, said


@dataclass(frozen=True)
class Checked:
    """What a run would do, line by line, and what would go wrong."""

    lines: tuple[Line, ...]
    faults: tuple[str, ...]
    to_do: int  # slides


@dataclass(frozen=True)
class _Slide:
    row: SlideRow
    store: PatchStore
    missing: Sequence[Making]  # of the encoders


def check(rows: Sequence[SlideRow], config: FeatureConfig, patches: Path, out: Path) -> Checked:
    """Look at a request of `extract_features`, embed some patches and write nothing. Raises RequestError as it does."""
    own = select_part(rows, config.part) if config.part else rows
    config, lines = _with_kept(config, out)
    each = makings(config, out)
    slides, faults = _look_at(own, each, patches)
    to_do = [slide for slide in slides if slide.missing]
    lines += [*_encoders(each), *_inputs(slides, each), _slides(own, slides, to_do)]
    needed, free = sum(map(_bytes, to_do)), shutil.disk_usage(_there(out)).free
    lines.append(("disk", f"{_size(needed)} to be written to {out}, {_size(free)} free"))
    if needed > free:
        faults.append(f"{out}: {_size(needed)} are to be written and {_size(free)} are free; make room first")
    try:
        lines += _times(to_do, each)
    except SlideError as error:
        faults.append(str(error))
    lines.append(("memory", _memory(each[0].embedder.device)))
    return Checked(tuple(lines), tuple(faults), len(to_do))


def _with_kept(config: FeatureConfig, out: Path) -> tuple[FeatureConfig, list[Line]]:
    """Without what is to be fitted first, and with what was fitted and kept."""
    lines: list[Line] = []
    if config.adapt_bn:
        kept = (out / NORMS_FILE).exists()
        said = f"as kept in {out}" if kept else "batch norms are estimated first, which is not in the time below"
        lines.append(("adapt-bn", said))
        config = replace(config, adapt_bn=False, adapted_norms=str(out / NORMS_FILE) if kept else "")
    if config.calibrates:
        kept = (out / INT8_FILE).exists()
        said = f"as kept in {out}" if kept else "the network is calibrated first; what is below is of fp32"
        lines.append(("int8", said))
        config = replace(config, int8_network=str(out / INT8_FILE)) if kept else replace(config, precision="fp32")
    return config, lines


def _encoders(each: Sequence[Making]) -> list[Line]:
    first, cores = each[0].embedder, len(os.sched_getaffinity(0))
    device = f"{_devices(first.devices)}, {cores} CPU cores, {first.precision}, {first.engine}"
    return [*(("encoder", _encoder(making)) for making in each), ("device", device)]


def _inputs(slides: Sequence[_Slide], each: Sequence[Making]) -> list[Line]:
    """As the networks see them; slides differ by little."""
    seen = dict.fromkeys(
        f"{seen_as(slide.store.info, making.embedder.input_px(slide.store.info.patch_size_px))}, "
        f"by {decoder_of(slide.store)}"
        for slide in slides
        for making in each
    )
    more = [("", f"… and {len(seen) - _SHOWN} more scales or sizes")] if len(seen) > _SHOWN else []
    return [*(("input", text) for text in list(seen)[:_SHOWN]), *more]


def _slides(own: Sequence[SlideRow], slides: Sequence[_Slide], to_do: Sequence[_Slide]) -> Line:
    count = sum(len(slide.store) for slide in to_do)
    done, never = len(slides) - len(to_do), len(own) - len(slides)
    said = f"{len(to_do)} to do with {count:,} patches, {done} done already, {never} that cannot be done"
    return "slides", f"{len(own)}: {said}"


def _times(to_do: Sequence[_Slide], each: Sequence[Making]) -> list[Line]:
    count = sum(len(slide.store) for slide in to_do)
    if not count:
        return []
    rate, embedded, took = _speed(to_do, Together([making.embedder for making in each]))
    return [
        ("speed", f"{rate:.3g} patches a second ({embedded} in {took:.1f} s, with decoding)"),
        ("time", f"about {_duration(count / rate)} on this machine"),
    ]


def _look_at(rows: Sequence[SlideRow], each: Sequence[Making], patches: Path) -> tuple[list[_Slide], list[str]]:
    slides: list[_Slide] = []
    faulty: dict[str, list[str]] = {}  # why → whose
    for row in rows:
        try:
            store = PatchStore(patches / f"{row.slide_id}.zarr")
            missing = [m for m in each if not m.is_done(row.slide_id, m.info(store, row.slide_id))]
            slides.append(_Slide(row, store, missing))
        except SlideError as error:
            faulty.setdefault(str(error), []).append(row.slide_id)
    return slides, [f"{_named(whose)}: {why}" for why, whose in faulty.items()]


def _named(slide_ids: Sequence[str]) -> str:
    more = f" and {len(slide_ids) - 3} more slides" if len(slide_ids) > 3 else ""
    return ", ".join(slide_ids[:3]) + more


def _speed(slides: Sequence[_Slide], together: Together) -> tuple[float, int, float]:
    """Patches a second, and the patches embedded and seconds taken to know it. Raises SlideError."""
    slides = [slide for slide in slides if len(slide.store)]
    with exact_arithmetic(together.lanes):
        _embed(slides[:1], together, together.at_once)  # what is done once: kernels are chosen, memory is taken
        embedded, seconds = _embed(slides, together, together.at_once)
        wanted = min(max(_PATCHES, 2 * together.at_once), int(_LONGEST_S * embedded / seconds))
        if wanted > embedded:
            embedded, seconds = _embed(slides, together, wanted)
    return embedded / seconds, embedded, seconds


def _embed(slides: Sequence[_Slide], together: Together, wanted: int) -> tuple[int, float]:
    chosen = [slides[i] for i in evenly_spaced(len(slides), _SLIDES)]
    share = -(-wanted // len(chosen))
    with ExitStack() as opened:
        sources = [
            opened.enter_context(patches_of(s.store, s.row.path, evenly_spaced(len(s.store), share))) for s in chosen
        ]
        start = time.perf_counter()
        with ThreadPoolExecutor(len(sources)) as threads:
            list(threads.map(together.embed, sources))
        return sum(source.count for source in sources), time.perf_counter() - start


def _encoder(making: Making) -> str:
    encoder = making.embedder.encoder
    return f"{encoder.name}, weights {encoder.weights} (sha256 {encoder.weights_sha256[:12]}), {encoder.dim} features"


def _devices(devices: Sequence[torch.device]) -> str:
    return ", ".join(f"{d} ({torch.cuda.get_device_name(d)})" if d.type == "cuda" else str(d) for d in devices)


def _bytes(slide: _Slide) -> int:
    widths = (m.embedder.encoder.dim * np.dtype(m.config.features_dtype).itemsize + 16 for m in slide.missing)
    return sum(len(slide.store) * width + _FILE_BYTES for width in widths)


def _there(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _memory(device: torch.device) -> str:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said = f"{_size(most)} taken at most until now, {_size(available_bytes())} free"
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        said += (
            f"; of the GPU's {_size(whole)} {_size(free)} free, {_size(torch.cuda.max_memory_reserved(device))} taken"
        )
    return said


def _size(count: float) -> str:
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def said(checked: Checked) -> Iterator[str]:
    """Line by line, as a terminal shows it."""
    yield from (f"{what:<9} {text}" for what, text in checked.lines)
    yield from (f"fault     {fault}" for fault in checked.faults[:_SHOWN])
    if len(checked.faults) > _SHOWN:
        yield f"fault     … and {len(checked.faults) - _SHOWN} more"
    verdict = "ready: the same command without --check does it" if checked.to_do else "there is nothing left to do"
    yield f"nothing was written; {'not all can be done' if checked.faults else verdict}"

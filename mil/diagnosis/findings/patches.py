"""Finding: patches as the network sees them, and whether a site's or a slide's are blurred.

The sheet shows patches after the very preprocessing of the encoder, brought back to colours for display alone.
Sharpness is the patch stores' own score (tiling.tissue.sharpness), over all patches.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from features.encoders import Encoder
from mil.cohort.cohort import Cohort
from mil.diagnosis.finding import Details, Finding, MissingInput, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.site_ratio import SiteRatio, site_ratios
from mil.diagnosis.sheet import sheet
from mil.pages.words import counted
from mil.run.attention import attention_path, read_attention
from tiling.jobs.errors import SlideError
from tiling.slides.slide import Pixels
from tiling.store.patches import PatchStore

KEY, TITLE, SHARE = "patches", "Patches as the model sees them", 5
_SHOWN, _COLUMNS, _SIDE_PX = 16, 8, 144
_BLURRED = 4.0  # times less sharp than others; two scanners that are both in focus differ by 2
_SURELY = 2.0
_IN_FOCUS = 0.9  # quantile of patches that stands for a slide: one in focus has sharp patches, whatever else is in it


def find(inputs: Inputs) -> Finding:
    folder, cohort = inputs.require_patches(), inputs.cohort
    sharp = np.array([_sharpness(inputs, number) for number in range(len(cohort.slide_ids))])
    if not np.isfinite(sharp).any():
        raise MissingInput("Give --patches and the folder whose patch stores were embedded: none there fits.")
    inputs.progress(0.4)
    pictures = _pictures(inputs, np.isfinite(sharp))
    ratios = [] if inputs.sites is None else site_ratios(sharp, inputs.sites, cohort.patient_ids, inputs.seed)
    blurred = [r for r in ratios if (r.ratio["value"] or 1) < 1 and r.beyond(_BLURRED, _SURELY)]
    alone = [str(name) for name in cohort.slide_ids[sharp < float(np.nanmedian(sharp)) / _BLURRED]]
    severity, verdict, remedy = _judge(blurred, alone)
    look = "Look for pen, dust, folds, glass, and for colours that are not those of the slide."
    return Finding(
        KEY,
        TITLE,
        severity,
        verdict,
        f"{remedy} {look}".strip() + ("" if inputs.sources.run else " With --run you see what attention looks at."),
        {f"sharpness of {r.site} over the others": r.ratio for r in ratios[:3]},
        pictures,
        [_table(cohort, sharp)],
        {"blurred_sites": [r.site for r in blurred], "blurred_slides": alone, "folder": folder.name},
    )


def _judge(blurred: list[SiteRatio], alone: list[str]) -> tuple[Severity, str, str]:
    """blurred: sites, the worst first; alone: slides that are far less sharp than the median slide."""
    if blurred:
        worst = blurred[0]
        return (
            "fault",
            f"Patches of {worst.site} are blurred: {1 / (worst.ratio['value'] or 1):.0f} times less sharp than others.",
            "Scan these slides again, or leave the site out. If it must stay, test with --split site, so that "
            "sharpness cannot be learned in the place of tissue.",
        )
    if alone:
        return (
            "look",
            f"Far less sharp than the others: {counted(len(alone), 'slide')}, {', '.join(alone[:5])}.",
            "Look at them in qc.html; scan them again or leave them out (tile-slides --min-sharpness).",
        )
    return "fine", "No site and no slide is far less sharp than the others; see for yourself below.", ""


def _pictures(inputs: Inputs, usable: NDArray[np.bool_]) -> list[Picture]:
    encoder = _encoder(inputs)
    return [
        Picture(title, _caption(encoder), image=_sheet(inputs, encoder, places), wide=True)
        for title, places in _chosen(inputs, usable).items()
        if places
    ]


def _table(cohort: Cohort, sharp: NDArray[np.float64]) -> Details:
    median = float(np.nanmedian(sharp))
    rows = tuple(
        (str(cohort.slide_ids[i]), f"{sharp[i]:.0f}", f"{sharp[i] / median:.2f}")
        for i in np.argsort(sharp, kind="stable")
        if np.isfinite(sharp[i])
    )
    return Details("Sharpness by slide, the least sharp first", ("slide", "sharpness", "of the median slide"), rows)


def _store(inputs: Inputs, number: int) -> PatchStore | None:
    """The store that was embedded; None if it is not there."""
    info = inputs.cohort.infos[number]
    try:
        store = PatchStore(inputs.require_patches() / f"{info.slide_id}.zarr")
        return store if store.digest == info.store_digest else None
    except SlideError:
        return None


def _sharpness(inputs: Inputs, number: int) -> float:
    store = _store(inputs, number)
    return np.nan if store is None else max(float(np.quantile(store.sharpness, _IN_FOCUS)), 1e-6)


def _chosen(inputs: Inputs, usable: NDArray[np.bool_]) -> dict[str, list[tuple[int, int]]]:
    """Title → (slide, patch) of what is shown, in a random but fixed order."""
    rng = np.random.default_rng(inputs.seed)
    slides = [int(s) for s in np.resize(rng.permutation(np.flatnonzero(usable)), _SHOWN)]
    found = {"Random patches": [(s, int(rng.integers(len(inputs.cohort.features[s])))) for s in slides]}
    if inputs.sources.run is None:
        return found
    high: list[tuple[int, int]] = []
    low: list[tuple[int, int]] = []
    for s in slides:
        path = attention_path(inputs.sources.run, str(inputs.cohort.slide_ids[s]))
        if not path.exists():
            continue
        weights = read_attention(path).attention
        if len(weights) == len(inputs.cohort.features[s]) and np.ptp(weights) > 1e-6 * weights.max():
            order = np.argsort(-weights, kind="stable")
            nth = sum(place[0] == s for place in high) % len(order)  # a slide that is shown twice: its next patch
            high.append((s, int(order[nth])))
            low.append((s, int(order[-1 - nth])))
    return {**found, "Patches with the most attention": high, "Patches with the least attention": low}


def _encoder(inputs: Inputs) -> Encoder | None:
    try:
        return inputs.encoder
    except MissingInput:  # then patches are shown as they are stored
        return None


def _caption(encoder: Encoder | None) -> str:
    if encoder is None:
        return "As they are stored: the encoder's weights are not at hand. One patch a slide, slides at random."
    wanted = encoder.preprocessing
    size = f"resized to {wanted.input_px} px" if wanted.input_px else "at their own size"
    return (
        f"After the preprocessing of {encoder.name} ({size}, {wanted.normalisation}), brought back to colours for "
        "display. One patch a slide, slides at random."
    )


def _shown(inputs: Inputs, encoder: Encoder | None, number: int, patch: int) -> Pixels:
    store = _store(inputs, number)
    assert store is not None
    if not store.has_pixels:
        raise MissingInput("Tile with --pixels jpeg or zstd: these stores hold coordinates only, so nothing is shown.")
    pixels: Pixels = store.read([patch])
    one: Pixels = (pixels if encoder is None else as_seen(encoder, pixels))[0]
    return one


def as_seen(encoder: Encoder, pixels: Pixels) -> Pixels:
    """Patches (n, P, P, 3) uint8 after the encoder's preprocessing, back in 0..255."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    seen = encoder.preprocessing.apply(images).permute(0, 2, 3, 1).numpy()
    colours = (seen * np.array(encoder.preprocessing.std) + np.array(encoder.preprocessing.mean)) * 255
    back: Pixels = np.clip(np.round(colours), 0, 255).astype(np.uint8)
    return back


def _sheet(inputs: Inputs, encoder: Encoder | None, places: list[tuple[int, int]]) -> bytes:
    images = [Image.fromarray(_shown(inputs, encoder, *place)) for place in places]
    return sheet([image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX) for image in images], _COLUMNS)

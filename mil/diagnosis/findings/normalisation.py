"""Finding: the colours of the tissue, whether the features follow from the normalisation they name, and if it matters.

Mean and standard deviation of a channel are those of all tissue pixels. The mean of batches' deviations, a common
substitute, is smaller: it leaves out how batches differ. Here a slide stands for a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.encoders import Encoder
from features.statistics.cohort import pooled
from mil.diagnosis.finding import Details, Figure, Finding, MissingInput, Picture, Severity
from mil.diagnosis.findings.domain_gap import probe_of_sample
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.probe import Probe, probe_difference
from mil.diagnosis.numbers.sample import Sample, embed_sample
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.difference import Difference
from mil.pages.chart import Chart
from tiling.slides.slide import Pixels

KEY, TITLE = "normalisation", "Normalisation"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CHECKED = 24  # patches that are compared with the stored features
_SAME = 0.1  # relative error below which features are the same: float16 and bf16 stay below 0.03
_Variant = tuple[Encoder, Callable[[Pixels], Pixels]]


@dataclass(frozen=True)
class Colours:
    """Mean and deviation (3,) of RGB in 0..1, and what averaging the slides' deviations would give."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    averaged_std: NDArray[np.float64]


def colours_of(inputs: Inputs, at: NDArray[np.int64]) -> Colours | None:
    """Over all tissue pixels of the slides at these positions; None where no file has the sums."""
    found = [s for s in (inputs.statistics[i] for i in at) if s is not None and s.tissue_pixels]
    if not found:
        return None
    pixels = np.array([s.tissue_pixels for s in found], np.float64)
    means, stds = (np.stack([getattr(s, name) for s in found]) for name in ("pixel_mean", "pixel_std"))
    mean, variance = pooled(pixels, means, stds**2)
    return Colours(mean, np.sqrt(variance), stds.mean(0))


def find_normalisation(inputs: Inputs) -> Finding:
    everything = np.arange(len(inputs.cohort.slide_ids))
    colours = colours_of(inputs, everything)
    encoder = inputs.encoder
    recorded = inputs.cohort.infos[0].normalisation
    stated = recorded == encoder.preprocessing.normalisation
    if colours is None and inputs.patches is None:
        raise MissingInput(
            "Extract the features again with extract-features, which keeps the colours of the tissue, "
            "or give --patches."
        )
    check = _reproduce(inputs, encoder) if inputs.patches is not None else None
    inputs.progress(0.2)
    right = check is not None and check.error <= _SAME
    effect = _effect(inputs, encoder, colours) if right and colours is not None else None
    severity, verdict, remedy = _judge(encoder, recorded, stated, check, effect)
    numbers: dict[str, Figure] = {}
    if check is not None:
        numbers["difference of stored features from embedded again"] = {"value": check.error, "low": None, "high": None}
    if effect is not None:
        numbers |= {
            "AUROC, the encoder's normalisation": effect.usual.auroc,
            "AUROC, the cohort's own": effect.own.auroc,
            "gain by the cohort's own": {k: getattr(effect.difference, k) for k in ("value", "low", "high")},
        }
    if colours is not None:
        numbers |= _deviation(inputs)
    return Finding(
        KEY,
        TITLE,
        severity,
        verdict,
        remedy,
        numbers,
        [_chart(inputs)] if colours is not None else [],
        [] if colours is None else [_overview(colours, encoder), _by_site(inputs), _by_slide(inputs)],
        {} if colours is None else {name: values.tolist() for name, values in vars(colours).items()},
    )


def _judge(
    encoder: Encoder, recorded: str, stated: bool, check: "_Check | None", effect: "_Effect | None"
) -> tuple[Severity, str, str]:
    again = "Extract the features again with extract-features and train on those."
    if check is not None and check.error > _SAME:
        how = f"They look like patches {check.closest}." if check.closest else "No usual mistake explains it."
        return (
            "fault",
            f"The stored features do not follow from the patches and {encoder.name}'s preprocessing.",
            f"{how} {again}",
        )
    if not stated:
        return (
            "fault",
            f"The features were made with {recorded}, but {encoder.name} was trained with "
            f"{encoder.preprocessing.normalisation}.",
            f"{again} A frozen network needs the normalisation of its own training, not that of other data.",
        )
    if effect is not None and effect.difference.low > 0:
        return (
            "look",
            "Features under the cohort's own colour mean and deviation tell slides apart better than the encoder's.",
            "The stain or scanner is far from usual: normalise stains before tiling, or try extract-features "
            "--adapt-bn.",
        )
    seen = " and the stored features follow from it" if check is not None else ""
    more = "" if effect is not None else " With --patches it is tried whether the cohort's own would do better."
    no_gain = ", and the cohort's own mean and deviation are not shown to be better" if effect is not None else ""
    return (
        "fine",
        f"Patches are normalised as {encoder.name} was trained{seen}{no_gain}.",
        f"Keep it: a frozen network wants its own normalisation, whatever the colours of the tissue are.{more}",
    )


@dataclass(frozen=True)
class _Check:
    error: float  # median relative difference of stored features from patches embedded again
    closest: str  # the mistake that explains the stored features; empty if none does


def _reproduce(inputs: Inputs, encoder: Encoder) -> _Check:
    """Embed some whole patches again and compare; where they differ, try the usual mistakes."""
    sample = inputs.sample
    rows = np.unique(np.linspace(0, len(sample.slides) - 1, _CHECKED).astype(int))
    stored = np.stack([inputs.cohort.features[sample.slides[r]][sample.indices[r]].float().numpy() for r in rows])
    fixed = encoder.preprocessing.input_px > 0
    wide = encoder.with_preprocessing(input_px=inputs.cohort.infos[0].input_px) if fixed else encoder
    pixels = sample.pixels[rows]

    def error(variant: _Variant) -> float:
        network, change = variant
        return relative_error(embed_sample(network, change(pixels), inputs.config.device), stored)

    right = error((wide, _as_it_is))
    if right <= _SAME:
        return _Check(right, "")
    errors = {name: error(variant) for name, variant in _mistakes(wide, inputs).items()}
    name, least = min(errors.items(), key=lambda item: item[1])
    return _Check(right, name if least <= _SAME else "")


def relative_error(found: NDArray[np.floating], stored: NDArray[np.floating]) -> float:
    """Median over rows (n, D) of the distance, in units of the length of what is stored."""
    length = np.maximum(np.linalg.norm(stored, axis=1), 1e-12)
    return float(np.median(np.linalg.norm(found - stored, axis=1) / length))


def _as_it_is(pixels: Pixels) -> Pixels:
    return pixels


def _mistakes(encoder: Encoder, inputs: Inputs) -> dict[str, _Variant]:
    zero, one, half = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3
    colours = colours_of(inputs, np.arange(len(inputs.cohort.slide_ids)))
    found: dict[str, _Variant] = {
        "that were not normalised (0 to 1)": (encoder.with_preprocessing(mean=zero, std=one), _as_it_is),
        "that were neither scaled nor normalised (0 to 255)": (
            encoder.with_preprocessing(mean=zero, std=(1 / 255,) * 3),
            _as_it_is,
        ),
        "normalised with ImageNet's mean and deviation": (
            encoder.with_preprocessing(mean=IMAGENET[0], std=IMAGENET[1]),
            _as_it_is,
        ),
        "normalised with mean and deviation 0.5": (encoder.with_preprocessing(mean=half, std=half), _as_it_is),
        "with red and blue exchanged": (encoder, lambda pixels: np.ascontiguousarray(pixels[..., ::-1])),
    }
    if colours is not None:
        found["normalised with the cohort's own mean and deviation"] = (_own(encoder, colours), _as_it_is)
    return found


def _own(encoder: Encoder, colours: Colours) -> Encoder:
    mean, std = (tuple(float(v) for v in values) for values in (colours.mean, colours.std))
    return encoder.with_preprocessing(mean=mean, std=std)


@dataclass(frozen=True)
class _Effect:
    usual: Probe
    own: Probe
    difference: Difference


def _effect(inputs: Inputs, encoder: Encoder, colours: Colours) -> _Effect:
    sample: Sample = inputs.sample
    own_features = embed_sample(_own(encoder, colours), sample.crops(encoder), inputs.config.device)
    inputs.progress(0.6)
    usual, own = (probe_of_sample(inputs, sample, values) for values in (inputs.sample_features, own_features))
    difference = probe_difference(inputs.cohort, own, usual, inputs.config.bootstrap, inputs.seed)
    return _Effect(usual, own, difference)


def _deviation(inputs: Inputs) -> dict[str, Figure]:
    """The cohort's mean and deviation, each averaged over the channels, with intervals over patients."""
    at = np.array([i for i, s in enumerate(inputs.statistics) if s is not None and s.tissue_pixels])
    slides = [s for s in (inputs.statistics[i] for i in at) if s is not None]
    weights = draw_weights(inputs.cohort.patient_ids[at].tolist(), inputs.config.bootstrap, inputs.seed)
    pixels = weights * np.array([s.tissue_pixels for s in slides], np.float64)  # R, S
    share = pixels[pixels.sum(1) > 0] / pixels.sum(1, keepdims=True)[pixels.sum(1) > 0]
    means = np.stack([s.pixel_mean for s in slides])
    mean = share @ means
    std = np.sqrt(np.maximum(share @ (np.stack([s.pixel_std for s in slides]) ** 2 + means**2) - mean**2, 0))
    return {"mean colour (0 to 1)": dict(interval(mean.mean(1))), "deviation": dict(interval(std.mean(1)))}


def _overview(colours: Colours, encoder: Encoder) -> Details:
    rows = [
        ("these slides, over all tissue pixels", _three(colours.mean), _three(colours.std)),
        ("these slides, deviations averaged slide by slide", _three(colours.mean), _three(colours.averaged_std)),
        ("ImageNet", *map(_three, IMAGENET)),
        (f"what {encoder.name} expects", _three(encoder.preprocessing.mean), _three(encoder.preprocessing.std)),
    ]
    return Details("Mean and deviation of red, green and blue", ("", "mean", "deviation"), tuple(rows))


def _three(values: NDArray[np.float64] | tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _by_site(inputs: Inputs) -> Details:
    sites = inputs.cohort.sites
    rows = []
    for site in sorted(set(sites)) if sites is not None else []:
        at = np.flatnonzero(sites == site)
        colours = colours_of(inputs, at)
        if colours is not None:
            rows.append((site or "(none)", str(len(at)), _three(colours.mean), _three(colours.std)))
    return Details("By site", ("site", "slides", "mean", "deviation"), tuple(rows))


def _by_slide(inputs: Inputs) -> Details:
    rows = [
        (str(name), _three(s.pixel_mean), _three(s.pixel_std))
        for name, s in zip(inputs.cohort.slide_ids, inputs.statistics, strict=True)
        if s is not None and s.tissue_pixels
    ]
    return Details("By slide", ("slide", "mean", "deviation"), tuple(rows))


def _chart(inputs: Inputs) -> Picture:
    """Mean of red against mean of blue, a dot a slide, a colour a site."""
    chart = Chart((0, 1), (0, 1), (420, 340), ("mean of red", "mean of blue"))
    sites = inputs.cohort.sites
    names = sorted(set(sites)) if sites is not None else [""]
    for i, s in enumerate(inputs.statistics):
        if s is not None and s.tissue_pixels:
            site = "" if sites is None else str(sites[i])
            said = f"{inputs.cohort.slide_ids[i]} {site}".strip()
            chart.dot(float(s.pixel_mean[0]), float(s.pixel_mean[2]), f"c{names.index(site) % 6}", 3, said)
    chart.dot(IMAGENET[0][0], IMAGENET[0][2], "c1" if len(names) == 1 else "c5", 7, "ImageNet")
    key = "A colour is a site. " if len(names) > 1 else ""
    return Picture(
        "Colour of each slide", f"{key}The large dot is ImageNet.", chart.svg("Mean red and blue of each slide")
    )

"""Finding: colours of the tissue, whether features follow from the normalisation they name, and whether it matters."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.encoders import Encoder
from mil.diagnosis.finding import Details, Figure, Finding, MissingInput, Picture, Severity
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.colours import Colours, colours_of, drawn_colours, with_colours
from mil.diagnosis.numbers.probe import Compared, figure_of
from mil.diagnosis.numbers.sample import embed_sample
from mil.metrics.bootstrap import draw_weights, interval
from mil.pages.chart import Chart
from tiling.slides.slide import Pixels

KEY, TITLE, SHARE = "normalisation", "Normalisation", 30
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CHECKED = 24  # patches that are compared with the stored features
_SAME = 0.1  # relative error below which features are the same: float16 and bf16 stay below 0.03
_Variant = tuple[Encoder, Callable[[Pixels], Pixels]]


def find(inputs: Inputs) -> Finding:
    colours, encoder, patches = colours_of(inputs.statistics), inputs.encoder, inputs.sources.patches
    recorded = inputs.cohort.infos[0].normalisation
    stated = recorded == encoder.preprocessing.normalisation
    if colours is None and patches is None:
        raise MissingInput(
            "Extract the features again with extract-features, which keeps the colours of the tissue, "
            "or give --patches."
        )
    check = _reproduce(inputs, encoder) if patches is not None else None
    inputs.progress(0.2)
    right = check is not None and check.error <= _SAME
    effect = _effect(inputs, encoder, colours) if right and colours is not None else None
    severity, verdict, remedy = _judge(encoder, recorded, stated, check, effect)
    numbers: dict[str, Figure] = {}
    if check is not None:
        numbers["difference of stored features from embedded again"] = {"value": check.error, "low": None, "high": None}
    if effect is not None:
        numbers |= {
            "AUROC, the encoder's normalisation": effect.first.auroc,
            "AUROC, the cohort's own": effect.second.auroc,
            "gain by the cohort's own": figure_of(effect.gain),
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
    encoder: Encoder, recorded: str, stated: bool, check: "_Check | None", effect: Compared | None
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
    if effect is not None and effect.gain.low > 0:
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
    colours = colours_of(inputs.statistics)
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


def _effect(inputs: Inputs, encoder: Encoder, colours: Colours) -> Compared:
    """The probe on the sample under the encoder's normalisation, and under the cohort's own."""
    own = embed_sample(_own(encoder, colours), inputs.sample.crops(encoder), inputs.config.device)
    inputs.progress(0.6)
    return inputs.compare(inputs.probe_of_sample(inputs.sample_features), inputs.probe_of_sample(own))


def _deviation(inputs: Inputs) -> dict[str, Figure]:
    """The cohort's mean and deviation, each averaged over the channels, with intervals over patients."""
    at, found = zip(*with_colours(inputs.statistics), strict=True)
    weights = draw_weights(inputs.cohort.patient_ids[list(at)].tolist(), inputs.config.bootstrap, inputs.seed)
    mean, std = drawn_colours(found, weights)
    return {"mean colour (0 to 1)": dict(interval(mean)), "deviation": dict(interval(std))}


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
        colours = colours_of(inputs.statistics[i] for i in at)
        if colours is not None:
            rows.append((site or "(none)", str(len(at)), _three(colours.mean), _three(colours.std)))
    return Details("By site", ("site", "slides", "mean", "deviation"), tuple(rows))


def _by_slide(inputs: Inputs) -> Details:
    rows = [
        (str(inputs.cohort.slide_ids[i]), _three(of.pixel_mean), _three(of.pixel_std))
        for i, of in with_colours(inputs.statistics)
    ]
    return Details("By slide", ("slide", "mean", "deviation"), tuple(rows))


def _chart(inputs: Inputs) -> Picture:
    """Mean of red against mean of blue, a dot a slide, a colour a site."""
    chart = Chart((0, 1), (0, 1), (420, 340), ("mean of red", "mean of blue"))
    sites = inputs.cohort.sites
    names = sorted(set(sites)) if sites is not None else [""]
    for i, of in with_colours(inputs.statistics):
        site = "" if sites is None else str(sites[i])
        said = f"{inputs.cohort.slide_ids[i]} {site}".strip()
        chart.dot(float(of.pixel_mean[0]), float(of.pixel_mean[2]), f"c{names.index(site) % 6}", 3, said)
    chart.dot(IMAGENET[0][0], IMAGENET[0][2], "c1" if len(names) == 1 else "c5", 7, "ImageNet")
    key = "A colour is a site. " if len(names) > 1 else ""
    return Picture(
        "Colour of each slide", f"{key}The large dot is ImageNet.", chart.svg("Mean red and blue of each slide")
    )

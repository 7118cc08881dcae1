"""Finding: how far the cohort is from ImageNet, and whether batch norms of its own would help (AdaBN).

The gap is the layers' mean distance (mil.diagnosis.numbers.norm_distance). Photographs and noise, through the same
network, are the ends of a scale on which it can be read.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.embed.device import pick_devices
from features.encoders import Encoder
from features.feature_file import SlideStatistics
from features.statistics.adapted_norms import ADAPTED, adapt, estimate_norms
from mil.diagnosis.finding import Details, Figure, Finding, MissingInput, Picture
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.norm_distance import Reference, drawn_moments, gap_of_images, reference_of
from mil.diagnosis.numbers.probe import Compared, figure_of
from mil.diagnosis.numbers.reference_images import noise, photographs
from mil.diagnosis.numbers.sample import embed_sample, steps
from mil.metrics.bootstrap import draw_weights
from mil.pages.chart import Chart

KEY, TITLE, SHARE = "domain-gap", "Distance from ImageNet", 30
Floats = NDArray[np.float64]
_ENDS = {"photographs": photographs, "noise": noise}
_DRAWS = 200  # of patients; each goes through all channels
_FAR = 0.6  # of the way to noise


@dataclass(frozen=True)
class _Measured:
    """Distances by layer (L,) of the slides and of both ends, and the mean distance of the slides."""

    reference: Reference
    slides: list[SlideStatistics]
    own: Floats
    divergences: Floats
    ends: dict[str, Floats]
    gap: Figure

    def place(self, value: float | None) -> float | None:
        """Of a mean distance between photographs, 0, and noise, 1."""
        low, high = (float(np.mean(self.ends[name])) for name in _ENDS)
        return None if value is None else (value - low) / (high - low)


def find(inputs: Inputs) -> Finding:
    measured = _measure(inputs, _usable_encoder(inputs))
    inputs.progress(0.4)
    position = {key: measured.place(value) for key, value in measured.gap.items()}
    adapted = _adapted(inputs)
    inputs.progress(0.95)
    where = position["value"] or 0.0
    helps = adapted is not None and adapted.gain.low > 0
    verdict, remedy = _judge(where, helps, tried=adapted is not None)
    numbers: dict[str, Figure] = {
        "place between photographs (0) and noise (1)": position,
        "distance from ImageNet": measured.gap,
        **{
            f"distance of {name}": {"value": float(np.mean(of)), "low": None, "high": None}
            for name, of in measured.ends.items()
        },
    }
    if adapted is not None:
        numbers |= {
            "AUROC, plain": adapted.first.auroc,
            "AUROC, adapted batch norms": adapted.second.auroc,
            "gain by adapting": figure_of(adapted.gain),
        }
    return Finding(
        KEY,
        TITLE,
        "look" if helps or where > _FAR else "fine",
        verdict,
        remedy,
        numbers,
        [_chart(measured)],
        [*_by_site(inputs, measured), _by_layer(measured)],
        {
            "layers": dict(zip(measured.reference.layers, measured.own, strict=True)),
            "divergence": float(np.mean(measured.divergences)),
        },
    )


def _usable_encoder(inputs: Inputs) -> Encoder:
    """The network of the features, with its batch norms. Raises MissingInput."""
    weights = inputs.cohort.infos[0].weights
    if weights.startswith("random") or weights.endswith(ADAPTED):
        raise MissingInput(f"Diagnose features of plain pretrained weights; these are of {weights!r}.")
    encoder = inputs.encoder
    if encoder.unmerged is None:
        raise MissingInput(
            f"{encoder.name} has no batch norms, so it keeps no statistics of ImageNet. Extract features with a "
            "network that has, such as resnet50, to measure the distance."
        )
    return encoder


def _measure(inputs: Inputs, encoder: Encoder) -> _Measured:
    reference = reference_of(encoder)
    seen = [s for s in inputs.statistics if s is not None and s.norm_patches and s.norm_layers == reference.layers]
    if len(seen) < len(inputs.cohort.slide_ids):
        raise MissingInput("Extract the features again with extract-features, which keeps the statistics needed.")
    mean, variance = drawn_moments(seen, np.ones((1, len(seen))))
    ends = {name: gap_of_images(encoder, of(), inputs.config.device) for name, of in _ENDS.items()}
    drawn = draw_weights(inputs.cohort.patient_ids.tolist(), _DRAWS, inputs.seed)
    return _Measured(
        reference,
        seen,
        reference.distances(mean, variance)[0],
        reference.divergences(mean[0], variance[0]),
        ends,
        reference.mean_distance(seen, drawn),
    )


def _judge(where: float, helps: bool, tried: bool) -> tuple[str, str]:
    """Verdict and remedy."""
    far = where > _FAR
    verdict = (
        f"To the network these patches lie {max(where, 0):.0%} of the way from photographs to noise"
        f"{': very far from what it was trained on' if far else ''}"
        f"{'; batch norms of their own make slides easier to tell apart' if helps else ''}."
    )
    if helps:
        return verdict, "Extract again with extract-features --adapt-bn, then train on those features."
    remedy = "Nothing to do: features of this network carry over. A network trained on pathology may still do better."
    if far:
        remedy = (
            "Look at the patches as the model sees them, then at the normalisation. If both are right, take a network "
            "that was trained on pathology (timm:hf-hub:…)."
        )
    return verdict, remedy if tried else f"{remedy} With --patches it is tried whether adapting helps."


def _adapted(inputs: Inputs) -> Compared | None:
    """The linear probe on a sample of patches, plain and with batch norms adapted to it; None without patches."""
    if inputs.sources.patches is None:
        return None
    encoder, device = inputs.encoder, inputs.config.device
    crops = inputs.sample.crops(encoder)
    mixed = crops[np.random.default_rng(inputs.seed).permutation(len(crops))]
    norms = estimate_norms(encoder, steps(mixed), pick_devices(device)[0])
    inputs.progress(0.7)
    adapted = inputs.probe_of_sample(embed_sample(adapt(encoder, norms), crops, device))
    return inputs.compare(inputs.probe_of_sample(inputs.sample_features), adapted)


def _by_site(inputs: Inputs, measured: _Measured) -> list[Details]:
    if inputs.sites is None:
        return []
    rows = []
    for site in sorted(set(inputs.sites)):
        at = np.flatnonzero(inputs.sites == site)
        drawn = draw_weights(inputs.cohort.patient_ids[at].tolist(), _DRAWS, inputs.seed)
        gap = measured.reference.mean_distance([measured.slides[i] for i in at], drawn)
        between = f"{gap['low']:.3f} – {gap['high']:.3f}"
        place = f"{measured.place(gap['value']):.0%}"
        rows.append((site or "(none)", str(len(at)), f"{gap['value']:.3f}", between, place))
    return [Details("By site", ("site", "slides", "distance", "95 % interval", "place"), tuple(rows))]


def _by_layer(measured: _Measured) -> Details:
    values = zip(measured.own, measured.divergences, *measured.ends.values(), strict=True)
    rows = tuple(
        (name, *(f"{value:.3f}" for value in of)) for name, of in zip(measured.reference.layers, values, strict=True)
    )
    return Details("By layer", ("layer", "distance", "divergence", *measured.ends), rows)


def _chart(measured: _Measured) -> Picture:
    own, ends = measured.own, measured.ends
    top = max(float(np.max(values)) for values in (own, *ends.values()))
    chart = Chart((1, len(own)), (0, top * 1.05), (760, 300), ("layer, first to last", "distance"), whole_x=True)
    numbers = np.arange(1, len(own) + 1)
    for kind, values in (("c2", ends["photographs"]), ("c1", ends["noise"]), ("c0", own)):
        chart.line(numbers, values, kind)
    return Picture(
        "Distance by layer",
        "Blue: these slides. Green: photographs. Orange: noise. In standard deviations of what each layer saw in "
        "ImageNet; photographs are not at zero because seven of them are not all of ImageNet.",
        svg=chart.svg("Distance from ImageNet of each layer, for these slides, photographs and noise"),
        wide=True,
    )

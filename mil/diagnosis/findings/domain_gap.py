"""Finding: how far the cohort is from ImageNet, and whether batch norms of its own would help (AdaBN).

A pretrained network's batch norms hold the mean and variance of what they saw in ImageNet; the feature files hold the
same moments of the cohort. Per layer the distance is the Fréchet distance of the two diagonal normal distributions in
units of ImageNet's standard deviation (see features.statistics.cohort), and beside it the symmetric Kullback-Leibler
divergence, median over channels. The gap is the layers' mean distance. Photographs and noise, through the same network,
are the ends of a scale on which it can be read.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.embed.device import pick_devices
from features.encoders import Encoder
from features.encoders.norms import norm_layers, norm_reference
from features.feature_file import SlideStatistics
from features.statistics.adapted_norms import ADAPTED, adapt, estimate_norms
from features.statistics.cohort import EPSILON, by_layer, frechet_by_layer
from features.statistics.norm_moments import norm_moments
from mil.diagnosis.finding import Details, Figure, Finding, MissingInput, Picture
from mil.diagnosis.findings.scale import within
from mil.diagnosis.inputs import Inputs
from mil.diagnosis.numbers.probe import Probe, linear_probe, probe_difference
from mil.diagnosis.numbers.reference_images import noise, photographs
from mil.diagnosis.numbers.sample import Sample, embed_sample, steps
from mil.metrics.bootstrap import draw_weights, interval
from mil.metrics.difference import Difference
from mil.pages.chart import Chart
from tiling.slides.slide import Pixels

KEY, TITLE = "domain-gap", "Distance from ImageNet"
Floats = NDArray[np.float64]
_DRAWS = 200  # of patients; each goes through all channels
_FAR = 0.6  # of the way to noise


@dataclass(frozen=True)
class Reference:
    """ImageNet's moments (ΣC,), and which channels belong to which layer."""

    mean: Floats
    variance: Floats
    layers: dict[str, int]

    def distances(self, mean: Floats, variance: Floats) -> Floats:
        """Fréchet distance (…, L) of moments (…, ΣC)."""
        found: Floats = frechet_by_layer(mean, variance, self.mean, self.variance, self.layers)
        return found

    def divergences(self, mean: Floats, variance: Floats) -> Floats:
        """Symmetric Kullback-Leibler divergence (L,), the median over the channels of a layer."""
        v, w, d = variance + EPSILON, self.variance + EPSILON, (mean - self.mean) ** 2
        both = ((v + d) / w + (w + d) / v) / 2 - 1
        return np.array([float(np.median(part)) for part in by_layer(both, self.layers)])


def reference_of(encoder: Encoder) -> Reference:
    assert encoder.unmerged is not None
    mean, variance = norm_reference(encoder.unmerged)
    return Reference(mean, variance, norm_layers(encoder.unmerged))


def gap_of_images(encoder: Encoder, pixels: Pixels, device: str = "cpu") -> Floats:
    """Distance (L,) of each layer of images (n, P, P, 3) uint8 RGB from what the encoder was trained on."""
    seen = norm_moments(encoder, steps(pixels), pick_devices(device)[0])
    return reference_of(encoder).distances(seen.mean, seen.variance)


def find_domain_gap(inputs: Inputs) -> Finding:
    weights = inputs.cohort.infos[0].weights
    if weights.startswith("random") or weights.endswith(ADAPTED):
        raise MissingInput(f"Diagnose features of plain pretrained weights; these are of {weights!r}.")
    encoder = inputs.encoder
    if encoder.unmerged is None:
        raise MissingInput(
            f"{encoder.name} has no batch norms, so it keeps no statistics of ImageNet. Extract features with a "
            "network that has, such as resnet50, to measure the distance."
        )
    reference = reference_of(encoder)
    seen = [s for s in inputs.statistics if s is not None and s.norm_patches and s.norm_layers == reference.layers]
    if len(seen) < len(inputs.cohort.slide_ids):
        raise MissingInput("Extract the features again with extract-features, which keeps the statistics needed.")
    curves = {"these slides": _moments(seen, np.ones((1, len(seen))))}
    ends = {name: gap_of_images(encoder, of(), inputs.config.device) for name, of in _ENDS.items()}
    inputs.progress(0.4)
    own = reference.distances(*curves["these slides"])[0]
    weights_drawn = draw_weights(inputs.cohort.patient_ids.tolist(), _DRAWS, inputs.seed)
    gap = _figure(reference, seen, weights_drawn)
    low_end, high_end = (float(np.mean(ends[name])) for name in _ENDS)

    def place(value: float | None) -> float | None:
        return None if value is None else (value - low_end) / (high_end - low_end)

    position = {key: place(value) for key, value in gap.items()}
    adapted = _adapted(inputs)
    inputs.progress(0.95)
    where = position["value"] or 0.0
    helps = adapted is not None and adapted.difference.low > 0
    far = where > _FAR
    verdict = (
        f"To the network these patches lie {max(where, 0):.0%} of the way from photographs to noise"
        f"{': very far from what it was trained on' if far else ''}"
        f"{'; batch norms of their own make slides easier to tell apart' if helps else ''}."
    )
    remedy = "Nothing to do: features of this network carry over. A network trained on pathology may still do better."
    if helps:
        remedy = "Extract again with extract-features --adapt-bn, then train on those features."
    elif far:
        remedy = (
            "Look at the patches as the model sees them, then at the normalisation. If both are right, take a network "
            "that was trained on pathology (timm:hf-hub:…)."
        )
    numbers: dict[str, Figure] = {
        "place between photographs (0) and noise (1)": position,
        "distance from ImageNet": gap,
        "distance of photographs": {"value": low_end, "low": None, "high": None},
        "distance of noise": {"value": high_end, "low": None, "high": None},
    }
    if adapted is not None:
        numbers |= {
            "AUROC, plain": adapted.plain.auroc,
            "AUROC, adapted batch norms": adapted.own.auroc,
            "gain by adapting": {k: getattr(adapted.difference, k) for k in ("value", "low", "high")},
        }
    divergences = reference.divergences(*(part[0] for part in curves["these slides"]))
    rows = [
        (name, f"{d:.3f}", f"{k:.3f}", f"{p:.3f}", f"{n:.3f}")
        for name, d, k, p, n in zip(reference.layers, own, divergences, *ends.values(), strict=True)
    ]
    sites = _site_rows(inputs, reference, seen, place)
    return Finding(
        KEY,
        TITLE,
        "look" if helps or far else "fine",
        verdict,
        remedy if adapted is not None or helps else f"{remedy} With --patches it is tried whether adapting helps.",
        numbers,
        [_chart(own, ends)],
        [
            *([Details("By site", ("site", "slides", "distance", "95 % interval", "place"), sites)] if sites else []),
            Details("By layer", ("layer", "distance", "divergence", "photographs", "noise"), tuple(map(tuple, rows))),
        ],
        {"layers": dict(zip(reference.layers, own, strict=True)), "divergence": float(np.mean(divergences))},
    )


_ENDS = {"photographs": photographs, "noise": noise}


def _moments(slides: list[SlideStatistics], weights: Floats) -> tuple[Floats, Floats]:
    """Mean and variance (R, ΣC) of all patches of S slides under weights (R, S)."""
    patches = np.array([s.norm_patches for s in slides], np.float64)
    means = np.stack([s.norm_mean for s in slides]).astype(np.float64)
    squares = np.stack([s.norm_var for s in slides]).astype(np.float64) + means**2
    share = weights * patches
    share /= share.sum(1, keepdims=True)
    mean = share @ means
    return mean, np.maximum(share @ squares - mean**2, 0)


def _figure(reference: Reference, slides: list[SlideStatistics], weights: Floats) -> dict[str, float | None]:
    weights = weights[weights.sum(1) > 0]
    return dict(interval(reference.distances(*_moments(slides, weights)).mean(1)))


def _site_rows(
    inputs: Inputs, reference: Reference, seen: list[SlideStatistics], place: Any
) -> tuple[tuple[str, ...], ...]:
    if inputs.sites is None:
        return ()
    rows = []
    for site in sorted(set(inputs.sites)):
        at = np.flatnonzero(inputs.sites == site)
        drawn = draw_weights(inputs.cohort.patient_ids[at].tolist(), _DRAWS, inputs.seed)
        gap = _figure(reference, [seen[i] for i in at], drawn)
        between = f"{gap['low']:.3f} – {gap['high']:.3f}"
        rows.append((site or "(none)", str(len(at)), f"{gap['value']:.3f}", between, f"{place(gap['value']):.0%}"))
    return tuple(rows)


@dataclass(frozen=True)
class _Adapted:
    plain: Probe
    own: Probe
    difference: Difference


def _adapted(inputs: Inputs) -> _Adapted | None:
    """The linear probe on a sample of patches, plain and with batch norms adapted to it; None without patches."""
    if inputs.patches is None:
        return None
    encoder, sample = inputs.encoder, inputs.sample
    crops = sample.crops(encoder)
    mixed = crops[np.random.default_rng(inputs.seed).permutation(len(crops))]
    norms = estimate_norms(encoder, steps(mixed), pick_devices(inputs.config.device)[0])
    inputs.progress(0.7)
    own = embed_sample(adapt(encoder, norms), crops, inputs.config.device)
    plain, adapted = (probe_of_sample(inputs, sample, values) for values in (inputs.sample_features, own))
    difference = probe_difference(inputs.cohort, adapted, plain, inputs.config.bootstrap, inputs.seed)
    return _Adapted(plain, adapted, difference)


def probe_of_sample(inputs: Inputs, sample: Sample, values: NDArray[np.float32]) -> Probe:
    """The linear probe on the means of a sample's features (n, D)."""
    means, there = sample.slide_means(values, len(inputs.cohort.slide_ids))
    folds = [within(fold, there) for fold in inputs.folds]
    return linear_probe(inputs.cohort, folds, means, inputs.config.bootstrap, inputs.seed)


def _chart(own: Floats, ends: dict[str, Floats]) -> Picture:
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

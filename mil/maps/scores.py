"""One number a patch, of which more is always warmer: what a heatmap shows of a slide.

attention     the weight of the patch in the slide's embedding: where the head looked, not for what
logit         log-odds of a class by the head's classifier on the patch's own embedding, as if it were a slide
contribution  what the patch adds to the slide's log-odds of a class (Javed et al., NeurIPS 2022), negative where it
              speaks against the class
gradient      input × gradient of the slide's log-odds of a class, summed over the standardised features (Shrikumar et
              al. 2016); 0 is a patch that is average in the training part
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import rankdata

from mil.run.attention import SlideAttention
from tiling.jobs.errors import RequestError, SlideError

Kind = Literal["attention", "logit", "contribution", "gradient"]
AttentionAs = Literal["raw", "rank", "percentile"]


@dataclass(frozen=True)
class PatchScores:
    """values (N,) float64; `meaning` is what stands at the colour bar."""

    values: NDArray[np.float64]
    kind: str
    meaning: str
    logarithmic: bool = False  # of the colours: values are shares > 0 that differ by orders of magnitude


def patch_scores(
    slide: SlideAttention,
    kind: Kind,
    of_class: str = "",
    attention_as: AttentionAs = "raw",
    gradient: NDArray[np.float32] | None = None,
) -> PatchScores:
    """The scores of a slide's N patches.

    of_class: one of the slide's classes; empty: the positive one, for more than two classes the predicted one.
        Attention is the slide's own unless a class is named.
    gradient: (N, C), the attribution of each class's logit, see mil.maps.gradients.
    Raises RequestError for an unknown class, SlideError where the head does not give what is asked for.
    """
    if kind == "attention":
        return _attention(slide, of_class, attention_as)
    name = of_class or default_class(slide)
    at = _class_index(slide, name)
    if kind == "logit":
        others = logsumexp(np.delete(slide.patch_logits.astype(np.float64), at, axis=1), axis=1)
        return PatchScores(slide.patch_logits[:, at] - others, kind, f"log-odds of {name} for the patch alone")
    if kind == "contribution":
        given = _present(slide.contributions, slide, "contribution", "contributions")
        return PatchScores(_margin(given, at), kind, f"contribution to the slide's log-odds of {name}")
    given = _present(gradient, slide, "gradient", "gradients")
    return PatchScores(_margin(given, at), kind, f"input × gradient of the log-odds of {name}")


def default_class(slide: SlideAttention) -> str:
    """The positive class; for more than two classes the most probable one."""
    return slide.positive or slide.classes[int(slide.probabilities.argmax())]


def decision(slide: SlideAttention) -> list[str]:
    """What the models said of the slide, beside its label, in a few words each."""
    shown = default_class(slide)
    probability = f"probability of {shown}: {slide.probabilities[slide.classes.index(shown)]:.2f}"
    label = [f"label: {slide.label}"] if slide.label else []
    return [probability, *label, f"{len(slide.attention):,} patches"]


def title(slide: SlideAttention) -> str:
    return "   ".join([slide.slide_id, *decision(slide)])


def _attention(slide: SlideAttention, of_class: str, how: AttentionAs) -> PatchScores:
    attention, of = slide.attention, ""
    if of_class:
        at = _class_index(slide, of_class)
        given = _present(slide.class_attention, slide, "attention", "attention of each class; leave out --class-name")
        attention, of = given[:, at], f" for {of_class}"
    values, n = attention.astype(np.float64), len(attention)
    if how == "raw":
        return PatchScores(
            values * n, "attention", f"attention{of} (1 = the average patch of this slide)", logarithmic=True
        )
    ranks = rankdata(values)  # equal patches share their mean rank
    if how == "rank":
        return PatchScores(ranks, "attention", f"rank by attention{of} ({n:,} = most)")
    return PatchScores(100 * (ranks - 0.5) / n, "attention", f"percentile of attention{of}")


def _class_index(slide: SlideAttention, name: str) -> int:
    if name not in slide.classes:
        raise RequestError(f"--class-name {name}: not a class of this run, expected one of {', '.join(slide.classes)}")
    return slide.classes.index(name)


def _present(values: NDArray[np.float32] | None, slide: SlideAttention, kind: str, what: str) -> NDArray[np.float32]:
    if values is None:
        raise SlideError(
            f"{slide.slide_id}: the head of this run (or the version that trained it) has no {what}; "
            f"choose another --score than {kind}, such as logit"
            if kind != "attention"
            else f"{slide.slide_id}: the head of this run has no {what}"
        )
    return values


def _margin(values: NDArray[np.float32], at: int) -> NDArray[np.float64]:
    """(N, C) -> (N,): the class against the mean of the others; for two classes this sums to the log-odds."""
    wide = values.astype(np.float64)
    return np.asarray(wide[:, at] - np.delete(wide, at, axis=1).mean(axis=1))

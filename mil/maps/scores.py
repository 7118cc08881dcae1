"""One number a patch, of which more is always warmer: what a heatmap shows of a slide.

Unless another is asked for it is the contribution, where the head has it, and else the logit. A logit is of a slide of
that one patch, of which the models have seen none: it is large for patches that the slide's own decision passes over.

attention     the weight of the patch in the slide's embedding: where the head looked, not for what
logit         what the head's classifier says of an output on the patch's own embedding, as if it were a slide: for a
              class its log-odds
contribution  what the patch adds to the slide's log-odds of a class (Javed et al., NeurIPS 2022), negative where it
              speaks against the class
gradient      input × gradient of the slide's log-odds of a class, summed over the standardised features (Shrikumar et
              al. 2016); 0 is a patch that is average in the training part
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mil.run.attention import SlideAttention
from mil.tasks.task import Task
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
    span: tuple[float, float] | None = None  # lowest and highest of all slides of the bag; None: of these


def default_kind(slide: SlideAttention) -> Kind:
    return "logit" if slide.contributions is None else "contribution"


def patch_scores(
    slide: SlideAttention,
    kind: Kind,
    of_class: str = "",
    attention_as: AttentionAs = "raw",
    gradient: NDArray[np.float32] | None = None,
    others: Sequence[SlideAttention] = (),
) -> PatchScores:
    """The scores of a slide's N patches.

    others: the other slides of its bag, which its scores, their ranks and their colours can be compared with.

    of_class: one of the slide's classes; empty: the positive one, for more than two classes the predicted one.
        Attention is the slide's own unless a class is named.
    gradient: (N, C), the attribution of each class's logit, see mil.maps.gradients; of the bag, the slide's own first.
    Raises RequestError for an unknown class, SlideError where the head does not give what is asked for.
    """
    if others:
        of_bag = patch_scores(_joined([slide, *others]), kind, of_class, attention_as, gradient)
        span = float(of_bag.values.min()), float(of_bag.values.max())
        return replace(of_bag, values=of_bag.values[: len(slide.attention)], span=span)
    if kind == "attention":
        return _attention(slide, of_class, attention_as)
    task, at = slide.task, _class_index(slide, of_class or default_class(slide))
    if kind == "logit":
        scores = task.patch_scores(slide.patch_logits.astype(np.float64), at)
        return PatchScores(scores, kind, f"{task.scored(at)} for the patch alone")
    if kind == "contribution":
        given = _present(slide.contributions, slide, "contribution", "contributions")
        return PatchScores(_shares(task, given, at), kind, f"contribution to the {_bag(slide)}'s {task.scored(at)}")
    given = _present(gradient, slide, "gradient", "gradients")
    return PatchScores(_shares(task, given, at), kind, f"input × gradient of the {task.scored(at)}")


def default_class(slide: SlideAttention) -> str:
    """The positive class; for more than two classes the most probable one."""
    return slide.task.positive_name or slide.classes[slide.task.shown_output(slide.probabilities)]


def decision(slide: SlideAttention) -> list[str]:
    """What the models said of the slide, beside its label, in a few words each."""
    said = slide.task.say(slide.probabilities, slide.classes.index(default_class(slide)))
    label = [f"label: {slide.label}"] if slide.label else []
    share = [f"{slide.share:.0%} of the attention of patient {slide.patient_id}"] if slide.patient_id else []
    return [f"{said.what}: {said.number}", *label, f"{len(slide.attention):,} patches", *share]


def title(slide: SlideAttention) -> str:
    return "   ".join([slide.slide_id, *decision(slide)])


def _joined(slides: Sequence[SlideAttention]) -> SlideAttention:
    """Their patches one after another."""
    names = ("attention", "patch_logits", "coords", "class_attention", "contributions")
    arrays = {name: [getattr(slide, name) for slide in slides] for name in names}
    given: dict[str, Any] = {name: np.concatenate(values) for name, values in arrays.items() if values[0] is not None}
    return replace(slides[0], **given)


def _bag(slide: SlideAttention) -> str:
    return "patient" if slide.patient_id else "slide"


def _attention(slide: SlideAttention, of_class: str, how: AttentionAs) -> PatchScores:
    attention, of = slide.attention, ""
    if of_class:
        at = _class_index(slide, of_class)
        given = _present(slide.class_attention, slide, "attention", "attention of each class; leave out --class-name")
        attention, of = given[:, at], f" for {of_class}"
    values, n = attention.astype(np.float64), len(attention)
    if how == "raw":
        return PatchScores(
            values * n, "attention", f"attention{of} (1 = the average patch of this {_bag(slide)})", logarithmic=True
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


def _shares(task: Task, values: NDArray[np.float32], at: int) -> NDArray[np.float64]:
    return task.shares(values.astype(np.float64), at)

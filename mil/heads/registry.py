"""The heads: models that turn the patch features of a slide into one answer. torch is imported on first use.

A new head is one file with a function `build(shape) -> Head`, and one line in `HEADS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mil.heads.head import Head, HeadShape
    from mil.heads.with_covariates import WithCovariates

HEADS = {  # name of the head: module below mil.heads.zoo
    "gated-abmil": "gated_abmil",
    "abmil": "abmil",
    "clam-sb": "clam_sb",
    "clam-mb": "clam_mb",
    "dsmil": "dsmil",
    "transmil": "transmil",
    "additive": "additive",
    "mean": "mean",
    "linear": "linear",
    "max": "max",
    "top-k": "top_k",
    "bag-stats": "bag_stats",
    "patch-label-copy": "patch_label_copy",
    "needle": "needle",
}
AUTO = "auto"
_STACKED = ("mean", "gated-abmil", "bag-stats")  # by AUTO: it shows all over, in some patches, in moments
_MANY_PATCHES = 20  # from which the best ten, of which needle and top-k speak, are few
_SLIDES_ALONE = ("bag-stats",)
_WITHIN_BAGS = ("needle", "clam-sb", "clam-mb")  # taught by what sets some patches of a bag apart from its others
_OF_VECTORS = ("linear", "mean", "bag-stats", "patch-label-copy")  # lose nothing where a bag is one row


def judges_patches(name: str) -> bool:
    """Whether a head says something of a single patch, so that there is a map to draw."""
    return name not in _SLIDES_ALONE


def of_single_rows(name: str) -> str:
    """What a head is worth where each bag is one row, such as the embedding of a whole slide; empty where it fits.

    ValueError for one that cannot learn from such bags.
    """
    if name in _WITHIN_BAGS:
        raise ValueError(f"the head {name} learns from what sets patches of a bag apart; take --head linear, or mean")
    if name in _OF_VECTORS:
        return ""
    return f"the head {name} has no patches to weigh and is a small network on that row; compare with --head linear"


def heads_of(name: str, outputs: int, patches: float) -> tuple[str, ...]:
    """The heads that are trained for it, one unless it is AUTO; patches: of a middling slide."""
    if name != AUTO:
        return (name,)
    if patches < _MANY_PATCHES:
        return _STACKED
    return *_STACKED, "needle" if outputs == 2 else "top-k"


def build_head(name: str, shape: "HeadShape") -> "Head":
    """A head with fresh weights, drawn from torch's global generator. KeyError for an unknown name."""
    module = import_module(f"mil.heads.zoo.{HEADS[name]}")
    head: Head = module.build(shape)
    if shape.covariates:
        with_covariates: type[WithCovariates] = import_module("mil.heads.with_covariates").WithCovariates
        return with_covariates(head, shape)
    return head

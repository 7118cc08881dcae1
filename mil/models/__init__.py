"""The heads: models that turn the patch features of a slide into one answer. torch is imported on first use.

A new head is one file with a function `build(shape) -> Head`, and one line in `HEADS`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mil.models.head import Head

HEADS = {  # name of the head: module below mil.models
    "gated-abmil": "gated_abmil",
    "abmil": "abmil",
    "clam-sb": "clam_sb",
    "clam-mb": "clam_mb",
    "dsmil": "dsmil",
    "transmil": "transmil",
    "additive": "additive",
    "mean": "mean",
    "max": "max",
    "top-k": "top_k",
    "bag-stats": "bag_stats",
    "patch-label-copy": "patch_label_copy",
    "needle": "needle",
}


@dataclass(frozen=True)
class HeadShape:
    """Everything needed to build a head before its weights are loaded; stored with each checkpoint."""

    dim_in: int  # D, length of a patch feature
    n_classes: int  # C
    embed_dim: int  # E
    attention_dim: int  # A
    dropout: float  # in training only


def build_head(name: str, shape: HeadShape) -> "Head":
    """A head with fresh weights, drawn from torch's global generator. KeyError for an unknown name."""
    module = import_module(f"mil.models.{HEADS[name]}")
    head: Head = module.build(shape)
    return head

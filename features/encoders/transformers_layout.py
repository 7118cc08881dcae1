"""Weights as the library transformers names them (`ViTModel`, `Dinov2Model`), under timm's names.

The networks are the same: queries, keys and values, three layers there, are one in timm.
"""

import re

import torch

from features.encoders.weights import StateDict

_MARK = "embeddings.cls_token"
_DROPPED = re.compile(r"(pooler|classifier)\.|embeddings\.mask_token")
_NAMES = (
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.weights_out)\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
_QUERY = re.compile(r"(.*)\.attention\.attention\.query\.(weight|bias)$")


def in_timms_names(state: StateDict) -> StateDict:
    """The same tensors; those of another layout are returned as they are."""
    prefix = next((key.removesuffix(_MARK) for key in state if key.endswith(_MARK)), None)
    if prefix is None:
        return state
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    renamed = {}
    for key, value in state.items():
        if query := _QUERY.match(key):
            layer, kind = query.groups()
            parts = [state[f"{layer}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            renamed[_renamed(f"{layer}.attn.qkv.{kind}")] = torch.cat(parts)
        elif ".attention.attention." not in key and not _DROPPED.match(key):
            renamed[_renamed(key)] = value
    return renamed


def _renamed(key: str) -> str:
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    return key

"""Patches at a scale that the network was not trained at are refused with how to tile them instead."""

import math
from types import SimpleNamespace

import pytest

from features.embed.scale import require_trained_scale, seen_as
from features.encoders import load_encoder
from tiling.jobs.errors import SlideError


def encoder(*mpp, side=224):
    return load_encoder("resnet18", "random").with_preprocessing(input_px=side, mpp=mpp)


def patches(side, mpp):
    return SimpleNamespace(patch_size_px=side, mpp=mpp)


@pytest.mark.parametrize(
    ("side", "mpp", "trained"),
    [
        (224, 0.5, (0.5,)),
        (224, 0.4901, (0.5,)),  # a level within 2 % of what was asked for is taken as it is
        (448, 0.25, (0.5,)),  # finer patches, resized to the very scale
        (224, 1.0, (0.25, 0.5, 1.0, 2.0)),
        (512, 0.5, ()),  # of ImageNet: held to none
        (224, math.nan, (0.5,)),  # images without a scale, seen as they are
    ],
)
def test_the_scale_of_the_training_is_taken(side, mpp, trained):
    require_trained_scale(encoder(*trained), patches(side, mpp))


@pytest.mark.parametrize(
    ("side", "mpp", "trained", "said", "remedy"),
    [
        (512, 0.5, (0.5,), "512 px at 0.5 µm/px, resized to 224 px: 1.14 µm/px", "--mpp 0.5 --patch-px 224"),
        (224, 0.25, (0.5,), "224 px at 0.25 µm/px;", "--mpp 0.5 --patch-px 224"),
        (512, 1.0, (0.25, 0.5, 1.0), "resized to 224 px: 2.29 µm/px", "--mpp 1 --patch-px 224"),
        (512, math.nan, (0.5,), "at no known scale, resized to 224 px: no known scale", "--mpp 0.5 --patch-px 224"),
    ],
)
def test_another_scale_is_refused_with_the_remedy(side, mpp, trained, said, remedy):
    with pytest.raises(SlideError) as refused:
        require_trained_scale(encoder(*trained), patches(side, mpp))
    assert said in str(refused.value) and f"tile-slides {remedy}, or say --input-px 224" in str(refused.value)


def test_patches_that_are_not_resized_are_said_so():
    assert seen_as(patches(512, 0.5), 512) == "patches of 512 px at 0.5 µm/px"

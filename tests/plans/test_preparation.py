"""Comparison of how images were prepared with how a plan prepares them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nnunet_transformers.plans.preparation import ct_ranges, differences
from nnunet_transformers.weights import EncoderCheckpoint
from nnunet_transformers.weights.initialise import InitialWeights


def plan(schemes=("CTNormalization", "ZScoreNormalization"), low=-175.004, high=250.0):
    statistics = {str(i): {"percentile_00_5": low, "percentile_99_5": high} for i in range(len(schemes))}
    configuration = SimpleNamespace(spacing=[2.0, 1.0, 1.0], normalization_schemes=list(schemes))
    return SimpleNamespace(
        plans={"foreground_intensity_properties_per_channel": statistics}, configuration=configuration
    )


def test_ranges():
    assert ct_ranges(plan().plans, plan().configuration.normalization_schemes) == [[-175.0, 250.0]]
    assert ct_ranges(plan().plans, ["ZScoreNormalization"]) is None
    assert ct_ranges(None, ["CTNormalization"]) is None


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (([2.0, 1.0, 1.0], ("CTNormalization", "ZScoreNormalization"), [[-175, 250]]), []),
        ((None, (), None), []),
        ((None, ("NoNormalization", "CTNormalization", "ZScoreNormalization"), None), ["normalization"]),
        ((None, (), [[-1024, 325], [-175, 250]]), ["range of CT"]),
        (([1.0, 1.0, 1.0], (), None), [r"spacing [1.0, 1.0, 1.0], the plan has [2.0, 1.0, 1.0]"]),
        (
            (None, ("CTNormalization",) * 2, [[-1024, 325], [-1024, 325]]),
            ["normalization", "range of CT [[-1024, 325]"],
        ),
    ],
)
def test_differences(images, expected):
    found = differences(plan(), *images)
    assert len(found) == len(expected)
    assert all(words in line for words, line in zip(expected, found, strict=True))


def test_spacing_in_the_plane_of_a_2d_plan():
    flat = plan()
    flat.configuration.spacing = [1.0, 1.0]
    assert not differences(flat, (2.0, 1.0, 1.0), (), None)
    assert differences(flat, (1.0, 1.0, 2.0), (), None)


def test_range_is_stored_with_the_weights(tmp_path):
    weights = InitialWeights.__new__(InitialWeights)
    weights._weights = EncoderCheckpoint({}, "qt_unet_tiny", (32, 32, 32), 1, ct_ranges=[[-125.0, 255.0]])
    assert weights.differences(plan(("CTNormalization",))) == [
        "the images were prepared with range of CT [[-125.0, 255.0]], the plan has [[-175.0, 250.0]]"
    ]

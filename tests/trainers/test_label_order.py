"""Axes along which labels lie in an order are found, others are not."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_transformers.trainers.label_order import label_centres, ordered_axes


def cases(count, *moves):
    """Label 2 lies ``moves`` standard deviations behind label 1, for each axis."""
    distances = np.random.default_rng(0).normal(size=(count, 3))
    distances = (distances - distances.mean(axis=0)) / distances.std(axis=0) + moves
    return [{1: np.full(3, 5.0), 2: 5.0 + distance} for distance in distances]


class TestOrderedAxes:
    @pytest.mark.parametrize("sign", [1, -1])
    def test_labels_that_lie_in_one_order(self, sign):
        """At 1.1 standard deviations that is not certain."""
        assert ordered_axes(cases(50, 0, 1.6 * sign, 1.1 * sign)) == {1: (1, 2)}
        assert ordered_axes(cases(2000, 0.9 * sign, 1.6 * sign, 1.1 * sign)) == {1: (1, 2), 2: (1, 2)}

    def test_a_few_cases_that_are_mirrored(self):
        given = cases(50, 30, 0, 0)
        given[7] = {label: -centre for label, centre in given[7].items()}
        assert ordered_axes(given) == {0: (1, 2)}

    def test_every_second_case_mirrored(self):
        given = cases(50, 30, 0, 0)
        given[::2] = [{label: -centre for label, centre in case.items()} for case in given[::2]]
        assert ordered_axes(given) == {}

    def test_few_cases(self):
        assert ordered_axes(cases(9, 8, 8, 8)) == {}
        assert ordered_axes(cases(10, 8, 8, 1.5)) == dict.fromkeys((0, 1), (1, 2))

    def test_cases_without_a_label(self):
        """Only those that have both count."""
        given = cases(19, 8, 0, 0)
        for case in given[:10]:
            del case[2]
        assert ordered_axes(given) == {}

    def test_the_clearest_pair_of_labels_is_named(self):
        given = [{**case, 3: case[1] + [20, 0, 0]} for case in cases(20, 4, 0, 0)]
        assert ordered_axes(given) == {0: (1, 3)}

    def test_nothing(self):
        assert ordered_axes([]) == ordered_axes([{}] * 20) == ordered_axes([{1: np.zeros(3)}] * 20) == {}


def test_centres_of_a_case():
    """Regions have tuples as names; absent labels have no voxels; what is annotated is no region."""
    voxels = np.array([[0, 1, 2, 3], [0, 3, 4, 8]])
    centres = label_centres({"class_locations": {1: voxels, (1, 2): voxels[:1], 3: [], (-1, 0, 1): voxels}})
    assert {label: centre.tolist() for label, centre in centres.items()} == {1: [2, 3, 5.5], (1, 2): [1, 2, 3]}

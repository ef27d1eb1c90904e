"""Colours and overlays of the report."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import rgb2lab

from nnunet_transformers.evaluation.comparison import Difference
from nnunet_transformers.evaluation.report import figures, slices
from nnunet_transformers.evaluation.report.figures import index_of_part
from nnunet_transformers.evaluation.report.palette import FEW, distinct_colours


def lab_of(colours):
    return rgb2lab(np.array([to_rgb(colour) for colour in colours]))


class TestColours:
    def test_few(self):
        assert distinct_colours(3) == FEW[:3]
        assert distinct_colours(0) == ()

    @pytest.mark.parametrize("number,distance", [(14, 25), (105, 9)])
    def test_many(self, number, distance):
        """Organs of one abdomen are told apart easily, those of a whole body (TotalSegmentator has 104) still."""
        colours = distinct_colours(number)
        lab = lab_of(colours)
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1e3 * np.eye(number)
        assert apart.min() > distance
        greys = lab_of([str(level) for level in np.linspace(0, 1, 20)])
        assert np.linalg.norm(lab[:, None] - greys, axis=-1).min() > 20

    def test_first_colours_do_not_depend_on_the_number(self):
        assert distinct_colours(30)[:13] == distinct_colours(13)


class TestParts:
    def test_labels(self):
        """Colours follow the labels' order and not their values."""
        assert index_of_part(np.array([0, 3, 7, 9]), [[7], [3]]).tolist() == [-1, 1, 0, -1]

    @pytest.mark.parametrize("parts", [[[1, 2, 3], [2, 3], [3]], [[3], [1, 2, 3], [2, 3]]])
    def test_regions(self, parts):
        """A voxel is drawn as its innermost region, in whatever order they are given."""
        index = index_of_part(np.array([0, 1, 2, 3]), parts)
        assert index[0] == -1
        assert [len(parts[i]) for i in index[1:]] == [3, 2, 1]

    def test_shifted_labels_look_wrong(self):
        """Also by seven, the number of colours that there were."""
        label = np.arange(1, 14).reshape(1, -1)
        parts = [[value] for value in range(1, 21)]
        right = slices.labels(index_of_part(label, parts), len(parts))
        assert right == slices.labels(index_of_part(label, parts), len(parts))
        assert right != slices.labels(index_of_part(label + 7, parts), len(parts))


def test_names_that_begin_with_an_underscore_are_in_the_key(monkeypatch):
    """Of labels and models; matplotlib leaves them out."""
    monkeypatch.setattr(figures, "_to_data_uri", lambda figure: figure.axes[0].get_legend().get_texts())
    series = {"_a": ([1, 2], [0.5, 0.6]), "b": ([1, 2], [0.1, 0.2])}
    assert [text.get_text() for text in figures.draw_series(series, "Dice")] == ["_a", "b"]
    differences = [
        Difference("Dice", label, "_a", "b", cases=6, undefined=0, mean=0.1, low=0.0, high=0.2, p=0.5, p_holm=1.0)
        for label in ("liver", "spleen")
    ]
    assert [text.get_text() for text in figures.draw_differences(differences, "Dice")] == ["_a - b"]

"""Plots: colours that people with colour blindness can tell apart, titles, panels for validation and test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from rlcore.runs.plots import COLORS, DPI, entitle, labelled, training_figure
from rlcore.runs.report import RunResult

# of linear RGB, for whom the green or the red cones are missing (Machado, Oliveira & Fernandes 2009, severity 1)
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
NORMAL = np.eye(3)
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
WHITE = np.array([0.95047, 1.0, 1.08883])
TAB10 = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")


def lab(color: str, sight) -> np.ndarray:
    """Return CIE Lab coordinates of a colour, as somebody sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (np.array(sight) @ linear).clip(0, 1)
    ratio = np.array(TO_XYZ) @ seen / WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def smallest_difference(colors, sight) -> float:
    """Return the smallest ΔE (CIE 1976) between two of the colours."""
    return min(np.linalg.norm(lab(a, sight) - lab(b, sight)) for a, b in itertools.combinations(colors, 2))


@pytest.mark.parametrize("sight", [NORMAL, DEUTERANOPIA, PROTANOPIA], ids=["normal", "deuteranopia", "protanopia"])
def test_colours_differ_for_everyone(sight):
    assert smallest_difference(COLORS, sight) > 10  # five times what is just noticeable
    assert all(np.linalg.norm(lab(a, sight) - lab(b, sight)) > 20 for a, b in itertools.pairwise(COLORS))


def test_the_difference_is_one_that_matplotlibs_colours_fail():
    assert smallest_difference(TAB10, NORMAL) > 10
    assert min(smallest_difference(TAB10, sight) for sight in (DEUTERANOPIA, PROTANOPIA)) < 10


def test_lines_take_the_palette_and_a_figure_its_title():
    figure, axes = labelled("x", "y")
    lines = [axes.plot([0, 1], [k, k])[0] for k in range(3)]
    assert tuple(line.get_color() for line in lines) == COLORS[:3] and figure.dpi == DPI
    entitle(figure, "prices: ppo, seed 3; 1,000 new customers")
    assert figure.get_suptitle() == "prices: ppo, seed 3; 1,000 new customers"


def test_validation_and_test_have_a_panel_each():
    figure = training_figure("steps", "score", [(1, 0.5), (2, 0.6)], {"a": (0.1, 0.0, 0.3), "b": (0.7, 0.6, 0.8)}, "b")
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("validation data", "test data")
    assert list(left.lines[0].get_ydata()) == [0.5, 0.6]
    assert [container.lines[0].get_color() == COLORS[0] for container in right.containers] == [False, True]
    drawn = [container.lines[2][0].get_segments()[0][:, 1].tolist() for container in right.containers]
    assert drawn == [pytest.approx([0.0, 0.3]), pytest.approx([0.6, 0.8])]
    assert len(training_figure("steps", "score", [(1, 0.5)], {}, None).axes) == 1


def test_the_headline_is_the_trained_policys_or_the_best():
    rows = {"a": {"score": 0.2, "spend": 1.0}, "b": {"score": 0.9}, "c": {"score": -0.5}, "d": {"score": None}}
    found = [RunResult.from_rows(rows, name, ("score", "spend"), higher_is_better=True) for name in ("a", None)]
    assert [result.of for result in found] == ["a", "b"] and found[0].metrics == {"score": 0.2, "spend": 1.0}
    assert np.isnan(found[1].metrics["spend"])
    assert RunResult.from_rows(rows, None, ("score",), higher_is_better=False).of == "c"
    assert np.isnan(RunResult.from_rows({"d": rows["d"]}, "d", ("score",), higher_is_better=True).value)

"""Student's intervals of means over seeds."""

from __future__ import annotations

from torch import Tensor

from rlcore.ope.intervals import LEVEL, student_half_width


def half_width(x: Tensor) -> Tensor:
    """Student's 95 % half-width of the mean over the first dimension: values [S, …] → […]; 0 where S is 1."""
    return student_half_width(x, LEVEL)


def mean_and_half_width(x: Tensor) -> list[float]:
    """Mean of values [S] and its 95 % half-width."""
    return [x.mean().item(), half_width(x).item()]

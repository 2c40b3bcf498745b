"""Checks that end a diverged training with one line, so that no step, checkpoint or result is made of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

MUST_BE_FINITE = ("losses/", "objective/", "ppo/", "twin/")
UNDEFINED_AT_TIMES = ("explained_variance", "ratio_var")  # undefined where values are constant or single
#: parts of an algorithm's state that hold learned weights
LEARNED = (
    "network",
    "target_network",
    "critic",
    "constraint",
    "auxiliary",
    "exploration",
    "members",
    "policy",
    "reference",
    "reward_model",
    "classifier",
    "overlap_head",
)


def check_metrics(values: Mapping[str, float], iteration: int, explain: Callable[[], str]) -> None:
    """Raise ValueError, with the name of the metric, where a loss or a diagnostic of a loss is not finite.

    `explain` adds to the message; it is called only where there is a message.
    """
    for name, value in values.items():
        if name.startswith(MUST_BE_FINITE) and not name.endswith(UNDEFINED_AT_TIMES) and not math.isfinite(value):
            raise ValueError(
                f"iteration {iteration}: {name} is {value}{explain()}: the training diverged and was stopped; the last "
                "checkpoint, if there is one, has finite weights"
            )


def describe_observations(obs: Tensor, names: Sequence[str]) -> str:
    """Name the first column of observations [N, D] that is not finite, as part of a message; empty where all are.

    `names` are those of the columns; they may be empty.
    """
    bad = (~obs.isfinite()).any(0).nonzero()[:, 0].tolist()
    if not bad:
        return ""
    name = f"column '{names[bad[0]]}'" if names else f"column {bad[0]}"
    return f" ({name} of the observations is not finite)"


def check_weights(agent: dict[str, Any], place: str) -> None:
    """Raise ValueError, with the name of the tensor, where a weight in an algorithm's state is not finite."""
    for name in LEARNED:
        _check_tensors(agent.get(name), f"{place}: agent.{name}")


def _check_tensors(weights: Any, place: str) -> None:
    if isinstance(weights, Tensor):
        if weights.is_floating_point() and not weights.isfinite().all():
            raise ValueError(f"{place}: expected finite weights, got NaN or infinity")
    elif isinstance(weights, dict):
        for name, part in weights.items():
            _check_tensors(part, f"{place}.{name}")
    elif isinstance(weights, (list, tuple)):
        for number, part in enumerate(weights):
            _check_tensors(part, f"{place}.{number}")

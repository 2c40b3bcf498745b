"""Numbers of conf/ that do not go together: one line that names the keys of both, before anything is trained."""

from __future__ import annotations

import re

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from configs import composed
from small_runs import OFFERS

SMALL_ENV = [override for override in OFFERS if override.startswith("env.")]


def build(*overrides: str) -> None:
    """Build environment, algorithm and evaluator as train.py does; raise what a constructor raises."""
    cfg = composed(*overrides)
    try:
        make_env, make_algorithm = (instantiate(cfg[part], _convert_="all") for part in ("env", "algo"))
    except InstantiationException as error:
        assert error.__cause__ is not None
        raise error.__cause__ from None
    make_algorithm(make_env(torch.device("cpu"), 0), 0).make_evaluator()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["algo.minibatches=7"], ["algo.minibatches", "env.num_agents", "algo.num_steps", "7"]),
        (["algo=ppo_expected", "algo.minibatches=7"], ["algo.minibatches", "env.num_agents", "algo.num_steps", "7"]),
        (["algo=ppo_expected", "algo.num_steps=6"], ["algo.num_steps", "12", "6"]),
        (["algo=bandit", "algo.memory=100"], ["algo.memory", "env.num_agents", "algo.num_steps", "576", "100"]),
        (["algo=bandit", "algo/lr_schedule=adaptive_kl"], ["algo.lr_schedule", "linear"]),
        (["algo/network=actor"], ["algo.network", "algo/network=actor_critic"]),
        (["algo=ppo_expected", "algo/network=action_values"], ["algo.network", "algo/network=actor"]),
        (
            ["algo/lr_schedule=adaptive_kl", "algo.lr_schedule.low=0.1"],
            ["algo.lr_schedule.low", "algo.lr_schedule.high", "0.1"],
        ),
        (
            ["env.evaluation.price_grid.low=9", "env.evaluation.price_grid.high=9"],
            ["env.evaluation.price_grid.low", "env.evaluation.price_grid.high", "9"],
        ),
        (["env.price_range=[3,2]"], ["env.price_range", "[3, 2]"]),
        (["algo=reward_model", "env=email", "algo.encoder.dim=30"], ["algo.encoder.heads", "algo.encoder.dim", "30"]),
        (
            ["algo=ppo_kl", "env=email", "algo.language_model.dim=30"],
            ["algo.language_model.heads", "algo.language_model.dim", "30"],
        ),
    ],
)
def test_numbers_that_do_not_go_together_are_named_by_their_keys(overrides, named):
    small = [] if "env=email" in overrides else SMALL_ENV
    with pytest.raises(ValueError, match="expected|needs") as caught:
        build(*small, *overrides)
    said = str(caught.value)
    assert "\n" not in said
    for word in named:
        assert re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", said), f"{word} not in: {said}"

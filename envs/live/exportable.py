"""What can be exported, and the columns of a customer that an exported policy reads."""

from __future__ import annotations

from typing import Any

import torch

from envs.live.columns import DATES, NUMBERS, TEXT, Column, Range
from envs.offers.env import OffersEnv
from envs.offers.policies.redemption_model import RedemptionModel
from envs.offers.populations.base import Population
from envs.offers.populations.customer_table import CustomerTable
from envs.offers.populations.feature_transform import FeatureTransform
from envs.offers.twin.structural_model import TwinPopulation
from envs.offers.unlike.env import UnlikeEnv
from rlcore.action_values import GreedyPolicy
from rlcore.algorithm import Algorithm
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.networks import Actor

MOST = float(torch.finfo(torch.float32).max)  # stands for no limit


def check_exportable(env: Any, agent: Algorithm, source: str) -> None:
    """Raise ValueError, in one line, where no shop could use the policy."""
    if not isinstance(env, OffersEnv) or isinstance(env, UnlikeEnv):
        raise ValueError(
            f"{source}: trained in {type(env).__name__}: expected a policy of env=offers or "
            "env=offers_twin, whose customers respond by the world's equations"
        )
    if not env.codec.hides_state:
        raise ValueError(
            f"{source}: its observation shows {', '.join(env.codec.shows)}, and no shop sees habit, fatigue and "
            "expectation: expected a policy trained with env/observation=history or belief"
        )
    if env.budget.stock:
        raise ValueError(
            f"{source}: trained with env.budget.stock: a plan keeps no stock yet, expected a policy without it"
        )
    if not isinstance(agent, NetworkAlgorithm) or not isinstance(agent.policy, (Actor, GreedyPolicy)):
        raise ValueError(
            f"{source}: trained by {type(agent).__name__}: expected a policy of logits at a price or of action values, "
            "such as that of algo=ppo, ppo_expected, bandit, bcq or cql"
        )
    if not isinstance(agent.auxiliary, RedemptionModel):
        raise ValueError(
            f"{source}: trained without a model of what contacts cost: expected algo/auxiliary=redemption_model"
        )


def columns_of(population: Population, env: OffersEnv) -> tuple[list[Column], FeatureTransform]:
    """Return the columns that a policy reads of a customer, and the transform of them into features.

    Customers of a table have the table's columns. All others have their features as columns of numbers, which are
    clipped to the range of training and env.clip_margin, as those of a log are.
    """
    if isinstance(population, TwinPopulation):
        return columns_of(population.base, env)
    if isinstance(population, CustomerTable):
        return table_columns(population), population.transform
    seen = env.seen_features
    low, high = env.static_limits()
    columns, numbers = [], {}
    for k in range(env.static_dim):
        is_seen = seen.low[k] <= seen.high[k]
        columns.append(Column(f"f{k}", NUMBERS, Range(seen.low[k].item(), seen.high[k].item()) if is_seen else None))
        numbers[f"f{k}"] = {
            "mean": 0.0,
            "sd": 1.0,
            "low": low[k].item() if is_seen else -MOST,
            "high": high[k].item() if is_seen else MOST,
            "median": 0.0,
            "has_gaps": False,
        }
    return columns, FeatureTransform({"numbers": numbers, "levels": {}})


def table_columns(population: CustomerTable) -> list[Column]:
    """Return the columns of a customer table that are features, with their ranges in training."""
    margin, columns = population.clip_margin, []
    for name, fitted in population.transform.numbers.items():
        width = (fitted["high"] - fitted["low"]) / (1 + 2 * margin)  # low and high are `margin` widths beyond the range
        seen = Range(fitted["low"] + margin * width, fitted["high"] - margin * width)
        kind = DATES if name in population.dates else NUMBERS
        columns.append(Column(name, kind, seen, may_be_missing=bool(fitted["has_gaps"])))
    for name in population.transform.levels:
        columns.append(Column(name, TEXT, as_text=name in population.text))
    return columns

"""Overrides that make a run of the scripts take seconds."""

from __future__ import annotations

OFFERS = [
    "env.num_agents=48",
    "algo.minibatches=4",
    "algo.network.hidden=[16]",
    "algo.auxiliary.hidden=[8]",
    "algo.eval_every=2",
    "algo.checkpoint_every=1",
    "env.population.reference_size=500",
    "env.evaluation.customers=30",
    "env.evaluation.seasons=1",
    "env.evaluation.calibration_seasons=1",
    "env.evaluation.validation=16",
    "env.evaluation.tuning_customers=20",
    "env.evaluation.tuning_seasons=1",
    "env.evaluation.fees=[0.5]",
    "env.evaluation.regression_customers=300",
    "env.evaluation.price_grid.points=8",
    "env.evaluation.bound.max_evaluations=12",
    "threads=1",
    "device=cpu",
]

#: of a policy that `ppo_expected` learns on a shop's own customers
SHOP_POLICY = [
    *(key for key in OFFERS if "population" not in key),
    "env.evaluation.hard_budget_rule=null",
    "algo.critic.hidden=[16]",
    "algo.total_steps=1152",
    "algo.minibatches=2",
]

"""What a policy that was trained on a twin alone earns in the true world, beside one that was trained there.

Usage:

    python scripts/bench.py learning/twin_policies benchmark.twin=PATH
    python scripts/bench.py learning/twin_policies benchmark.twin=PATH 'benchmark.views=[belief,history]'
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from envs.offers.env import OffersEnv
from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.twin.theta_estimate import TwinTheta
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs import checkpoint
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.planning import ESTIMATED, planners
from scripts.benchmarks.common.shares import share_of_rival
from scripts.benchmarks.common.training import drift_at_home, evaluator_of, train

ON_THE_TWIN, IN_THE_WORLD = "PPO, trained on the twin", "PPO, trained in the true world"


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env_of_view: dict[str, Callable[..., OffersEnv]],
    ppo: Callable[..., NetworkAlgorithm],
    twin: str,
    views: list[str],
) -> dict:
    """Train PPO on the twin at the path `twin` and in the true world, under each of `views`; judge both in the latter.

    Each policy's price drift is calibrated where the policy was trained. Planning under the filtered belief is judged
    beside them. Raises ValueError without a path or on an unknown view.
    """
    if not twin:
        raise ValueError("benchmark.twin: expected the path of a twin's checkpoint, such as that of learning/recovery")
    if unknown := [view for view in views if view not in env_of_view]:
        raise ValueError(f"benchmark.views: expected some of {', '.join(env_of_view)}, got '{unknown[0]}'")
    found: dict[str, dict] = {}
    for view in views:
        found[view] = judge(env_of_view[view], device, seed, ppo, twin)
        show(policy_table(view, found[view]))
        checkpoint.save_json(directory / "rows.json", found)
    return {"views": found}


def judge(
    env: Callable[..., OffersEnv], device: torch.device, seed: int, ppo: Callable[..., NetworkAlgorithm], twin: str
) -> dict:
    """Train PPO on the twin and in the true world; return what both and both planners earn in the true world."""
    world = env(device, seed, twin=None)
    evaluator = evaluator_of(world)
    market = evaluator.test_market(world.budget)
    bound = evaluator.solve_bound(market)
    theta = TwinTheta(world.population.draw(2, torch.Generator(device).manual_seed(seed), "train"), path=twin)
    policies = {
        f"planning on {name}": x for name, x in planners(evaluator, market, bound, theta(market.features)).items()
    }
    for name, home in ((ON_THE_TWIN, env(device, seed, twin=twin)), (IN_THE_WORLD, world)):
        agent = train(ppo(home, seed))
        policies[name] = evaluator.deploy_at_drift(agent, market, drift_at_home(agent))
    records = {
        name: evaluator.simulate(policy, market, bound, evaluator.seasons, TEST_SEASONS)
        for name, policy in policies.items()
    }
    return {
        "customers": len(market),
        "seasons": evaluator.seasons,
        "policies": {name: summarise_seasons(record, market, bound) for name, record in records.items()},
        "share": {
            f"{name} / {rival}": share_of_rival(records[name], records[rival], market, bound)
            for name, rival in ((ON_THE_TWIN, IN_THE_WORLD), (ON_THE_TWIN, f"planning on {ESTIMATED}"))
        },
    }


def policy_table(view: str, found: dict):
    """Lay out the policies under a view."""
    lines = [
        [name, f"{row['score']:.3f}", *(f"{x:.3f}" for x in row["score_ci"]), f"{row['spend_ratio']:.3f}"]
        for name, row in found["policies"].items()
    ]
    caption = "\n".join(
        f"{pair}: {share:.3f} ({low:.3f} to {high:.3f}, paired by customer)"
        for pair, (share, low, high) in found["share"].items()
    )
    size = f"{found['customers']:,} new customers, {found['seasons']} seasons"
    title = f"in the true world, under env/observation={view}: {size}"
    return text_table(title, ["policy", "score", "from", "to", "spend"], lines, caption)

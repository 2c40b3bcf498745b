"""A shop with a life: sends, a twin, a policy judged in the true world; and half a year later the next of both.

Usage:

    python scripts/bench.py shop/next_month
    python scripts/bench.py shop/next_month benchmark.customers=500 hydra.run.dir=FOLDER

The made-up shop sends at random for `first_weeks`, while customers join and leave. A policy is trained on a twin of
that log. Then more weeks are added to the log, and the next twin and the next policy start from the last ones, with a
share of the steps. All are judged in the true world, beside the policy that made the log, on customers from whom
nothing is learned. A run that was cut off goes on in the same folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.env import OffersEnv
from envs.offers.evaluation.on_estimates import Estimates
from envs.offers.example_shop.yaml_files import GAP_SHARE, SENDING_SHARE
from envs.offers.planning.knapsack import Increments, ranked
from envs.offers.policies.base import SeasonPolicy, View
from envs.offers.policies.information import UNINFORMED, Information
from envs.offers.policies.learned import CodecView, deploy_policy
from envs.offers.policies.logging_policies import contact_with
from envs.offers.twin.ensemble import TwinEnsemble
from envs.offers.world.customers import CustomerState
from rlcore.distributions import draw
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs import checkpoint
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.trained import store
from scripts.benchmarks.common.training import drift_at_home, evaluator_of, train
from scripts.benchmarks.shop import made_up_shop
from scripts.benchmarks.shop.judge import Judge
from scripts.example_shop import MadeUp, make_up

LOGGED, PRIORS, FIRST, NEXT = "as the log", "planning on the priors", "policy", "next policy"


class SendsOfTheLog:
    """What the shop did while its log was made: in some weeks nothing, else to half of those it might write to."""

    information: Information = UNINFORMED

    def __init__(self, env: OffersEnv, features: Tensor, seed: int):
        self.view: View = CodecView(env.codec, features.float())
        self.generator = torch.Generator(env.device).manual_seed(seed)

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return a step of no price to each message, so that no budget stops it; the states are not read."""
        n = len(options.action_mask)
        is_gap = torch.rand((), generator=self.generator) < GAP_SHARE
        share = torch.full((n,), 0.0 if is_gap else SENDING_SHARE, dtype=torch.float64)
        u = torch.rand(n, generator=self.generator, dtype=torch.float64)
        action = draw(contact_with(share, options.action_mask), u)
        return ranked(torch.where(action > 0, 1.0, -torch.inf).double(), torch.zeros(n).double(), action)


@dataclass(frozen=True)
class Parts:
    """What both stages share."""

    env: Callable[..., OffersEnv]
    twin: Callable[..., TwinEnsemble]
    algo: Callable[..., NetworkAlgorithm]
    device: torch.device
    seed: int


@dataclass(frozen=True)
class Stage:
    """The twin and the policy that a shop has after some weeks, and the CPU seconds that they took."""

    twin: dict[str, Any]
    policy: NetworkAlgorithm
    steps: int
    seconds: dict[str, float]


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    twin: Callable[..., TwinEnsemble],
    next_twin: Callable[..., TwinEnsemble],
    algo: partial[NetworkAlgorithm],
    customers: int,
    first_weeks: int,
    weeks: int,
    share_of_steps: float,
) -> dict:
    """Learn from the first weeks and, warm-started, from all; judge both policies and that of the log."""
    made = make_up(customers, seed, first_weeks=first_weeks, weeks=weeks)
    parts = Parts(env, twin, algo, device, seed)
    first = learn(parts, directory / "first", made, (first_weeks,), None)
    print(f"first: {first.steps:,} steps, CPU seconds {first.seconds}", flush=True)
    steps = round(share_of_steps * algo.keywords["total_steps"])
    later_parts = replace(parts, twin=next_twin, algo=with_steps(algo, steps))
    later = learn(later_parts, directory / "next", made, (first_weeks, weeks), first)
    print(f"next: {later.steps:,} steps, CPU seconds {later.seconds}", flush=True)
    found = judged(parts, directory / "next", {FIRST: first, NEXT: later})
    checkpoint.save_json(directory / "rows.json", found)
    show(table(found, customers))
    return found


def with_steps(algo: Callable[..., NetworkAlgorithm], steps: int) -> Callable[..., NetworkAlgorithm]:
    """Return an algorithm with other `total_steps`."""
    return lambda env, seed: algo(env, seed, total_steps=steps)


# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────────
def learn(parts: Parts, folder: Path, made: MadeUp, ends: tuple[int, ...], last: Stage | None) -> Stage:
    """Import the weeks up to each of `ends`, fit a twin to the log, and train a policy on the twin.

    `last` is the stage to start from. What a run that was cut off had learned is read again.
    """
    made_up_shop.write_customers(folder, made, ends[-1])
    customers = made_up_shop.population(folder, truth=False)
    env = made_up_shop.shop_env(parts.env, folder, parts.device, parts.seed, customers)
    if last:
        env.load_fitted(last.policy.env.state_dict())
    path, trained = folder / "twin.pt", folder / "policy.pt"
    seconds: dict[str, float] = {}
    if not path.exists():
        for start, end in zip((0, *ends), ends):
            log = made_up_shop.import_weeks(folder, made, start, end, env, parts.seed)
        started = time.process_time()
        made_up_shop.fit_twin(parts.twin, env, log, parts.seed, path, last.twin if last else None)
        seconds["twin"] = round(time.process_time() - started)
    simulated = made_up_shop.twin_population(folder, path)
    on_twin = made_up_shop.shop_env(parts.env, folder, parts.device, parts.seed, simulated)
    if last:
        on_twin.load_fitted(last.policy.env.state_dict())
    policy = parts.algo(on_twin, parts.seed)
    if trained.exists():
        state = checkpoint.load(str(trained))["agent"]
        on_twin.load_fitted(state["env"])
        policy.load_policy(state)
    else:
        if last:
            policy.start_from(last.policy.state_dict())
        started = time.process_time()
        train(policy)
        seconds["policy"] = round(time.process_time() - started)
        store(trained, "policy", policy)
    steps = policy.iterations * policy.steps_per_iteration
    return Stage(checkpoint.load(str(path))["agent"], policy, steps, seconds)


# ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def judged(parts: Parts, folder: Path, stages: dict[str, Stage]) -> dict:
    """Return a row a policy, in the true world, and how much more each stage's brings than those before it."""
    judge = Judge.of(parts.env, folder, parts.device, parts.seed)
    prior = made_up_shop.population(folder, truth=False)
    believed = made_up_shop.shop_env(parts.env, folder, parts.device, parts.seed, prior)
    evaluator = evaluator_of(believed)
    predicted = evaluator.on_estimates.predicted_market(judge.market)
    policies: dict[str, SeasonPolicy] = {
        LOGGED: SendsOfTheLog(believed, judge.market.features, parts.seed),
        PRIORS: evaluator.on_estimates.planner(Estimates(predicted, None), evaluator.solve_bound(predicted)),
    }
    for name, stage in stages.items():
        policies[name] = deployed(judge, stage.policy)
    seasons = {name: judge.simulate(policy) for name, policy in policies.items()}
    rows: dict[str, dict[str, Any]] = {name: judge.summary(records) for name, records in seasons.items()}
    names = list(policies)
    for name, stage in stages.items():
        earlier = names[: names.index(name)]
        ahead_of = {other: judge.ahead(seasons[name], seasons[other]) for other in earlier}
        rows[name] |= {"ahead_of": ahead_of, "steps": stage.steps, "seconds": stage.seconds}
    return {"judged_on": len(judge.market), "policies": rows}


def deployed(judge: Judge, algorithm: NetworkAlgorithm) -> SeasonPolicy:
    """Deploy a policy in the judge's market as a shop would: calibrated on its twin, with its own features."""
    env = algorithm.env
    market = judge.market
    return deploy_policy(
        algorithm,
        env.codec,
        market.customers,
        judge.evaluator.world,
        judge.features(env),
        prices=evaluator_of(env).prices,
        drift=drift_at_home(algorithm),
    )


def table(found: dict, customers: int):
    """Lay out what each policy brings in the true world."""
    lines = []
    for name, row in found["policies"].items():
        others = row.get("ahead_of", {})
        ahead = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*others[x]) if x in others else "" for x in (LOGGED, FIRST)]
        steps = f"{row['steps']:,}" if "steps" in row else ""
        lines.append([name, steps, f"{row['score']:.3f}", f"{row['profit']:.2f}", f"{row['spend']:.2f}", *ahead])
    columns = ["policy", "steps", "score", "profit", "spend", "less the log's", "less the first"]
    caption = (
        "money a customer and season; profit: expected, beyond sending nothing; less …: than that policy, paired, with "
        "the 95 % interval over customers"
    )
    title = f"{customers:,} customers at first, judged in the true world on {found['judged_on']:,}"
    return text_table(title, columns, lines, caption)

"""A shop without a log: what the choice of its first weeks costs, and when the first twin can be trusted.

Usage:

    python scripts/bench.py shop/cold_start
    python scripts/bench.py shop/cold_start 'benchmark.customers=[500]' 'benchmark.weeks=[12]'

The made-up shop lives through its first weeks, in which chance or a rule decides. A twin is fitted to the log of the
first weeks, and planning on the twin is judged in the true world, on customers who are in no log, beside what needs no
log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from envs.offers.env import OffersEnv
from envs.offers.evaluation.evaluator import OffersEvaluator
from envs.offers.evaluation.on_estimates import Estimates
from envs.offers.evaluation.simulation import SeasonRecord
from envs.offers.example_shop.customers import customer_rows
from envs.offers.example_shop.life import Shop
from envs.offers.example_shop.yaml_files import FIRST_MONDAY
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import NoContact, RandomContacts
from envs.offers.policies.rollover import planning_policy
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.twin.ensemble import TwinEnsemble
from rlcore.runs import checkpoint
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.planning import ON_TRUTH, estimates_of
from scripts.benchmarks.common.training import evaluator_of
from scripts.benchmarks.shop import made_up_shop
from scripts.benchmarks.shop.first_weeks import Believed, Choice, NewShop
from scripts.benchmarks.shop.judge import Judge
from scripts.example_shop import MadeUp

RULES, PRIORS = "rules", "planning on the priors"  # the rows that the twins' plans are compared with


class Setting(NamedTuple):
    """What all lives share."""

    make_env: Callable[..., OffersEnv]
    make_twin: Callable[..., TwinEnsemble]
    device: torch.device
    seed: int
    judge: Judge
    believed: OffersEvaluator  #: the judge's customers as the priors and their table have them
    fee: float  #: a contact, of the rules
    judged: int  #: customers in the judge's table
    weekly: float  #: money a customer and week

    def env(self, folder: Path) -> OffersEnv:
        """Build the environment of a folder's customers, as the priors and their table have them."""
        customers = made_up_shop.population(folder, truth=False)
        return made_up_shop.shop_env(self.make_env, folder, self.device, self.seed, customers)


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    twin: Callable[..., TwinEnsemble],
    choices: dict[str, Choice],
    customers: list[int],
    weeks: list[int],
    judged: int,
) -> dict:
    """Let shops of each size live through the first weeks by each choice, and judge what is learned from these."""
    setting = prepare(env, twin, directory / "judge", device, seed, judged)
    seasons = without_a_log(setting)
    found: dict = {"without_a_log": {name: setting.judge.summary(x) for name, x in seasons.items()}}
    found |= {"fee": setting.fee, "first_weeks": [], "twins": []}
    show(table_without_a_log(found["without_a_log"]))
    for n in customers:
        for name, choice in choices.items():
            folder = directory / f"{name}_{n}"
            made, costs = live(setting, folder, choice, n, max(weeks))
            found["first_weeks"].append({"customers": n, "choice": name, **costs})
            for until in weeks:
                row = judged_twin(setting, folder / f"{until}_weeks", made, until, seasons)
                found["twins"].append({"customers": n, "choice": name, "weeks": until, **row})
                checkpoint.save_json(directory / "rows.json", found)
    show(table_of_costs(found["first_weeks"]))
    show(table_of_twins(found["twins"]))
    return found


def prepare(
    env: Callable[..., OffersEnv],
    twin: Callable[..., TwinEnsemble],
    folder: Path,
    device: torch.device,
    seed: int,
    judged: int,
) -> Setting:
    """Make up customers who are in no log, and tune the rules' fee on what the priors say of them."""
    rows = dated(customer_rows(0, judged, 1000 + seed, younger=False))
    shop = Shop(rows, torch.zeros(judged, dtype=torch.long), 1000 + seed)
    made_up_shop.write_customers(folder, MadeUp(rows, [], shop, []), 1)
    prior = made_up_shop.shop_env(env, folder, device, seed, made_up_shop.population(folder, truth=False))
    believed = evaluator_of(prior)
    tuning = believed.on_estimates.predicted_market(believed.tuning_market(prior.budget))
    fee = believed.tune_fee(tuning, lambda fee: believed.on_estimates.knapsack(tuning, fee=fee, values=None))
    if prior.budget.weekly is None:
        raise ValueError("benchmark.env.budget.weekly: expected money a customer and week, got null")
    return Setting(
        make_env=env,
        make_twin=twin,
        device=device,
        seed=seed,
        judge=Judge.of(env, folder, device, seed),
        believed=believed,
        fee=fee,
        judged=judged,
        weekly=prior.budget.weekly,
    )


def dated(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Let all customers have joined with the first week."""
    return [row | {"Joined": str(FIRST_MONDAY)} for row in rows]


def without_a_log(setting: Setting) -> dict[str, list[SeasonRecord]]:
    """Simulate what needs no log in the true world and, for comparison, planning on the truth."""
    judge, believed = setting.judge, setting.believed
    predicted = believed.on_estimates.predicted_market(judge.market)
    start = believed.on_estimates.start_belief()
    policies: dict[str, SeasonPolicy] = {
        "nothing": NoContact(),
        "random": RandomContacts(judge.market.customers, judge.evaluator.world, seed=setting.seed),
        RULES: believed.on_estimates.knapsack(predicted, fee=setting.fee, values=None),
        PRIORS: believed.on_estimates.planner(Estimates(predicted, None), believed.solve_bound(predicted)),
        "planning on the truth": planning_policy(judge.market, judge.bound, ON_TRUTH, start),
    }
    return {name: judge.simulate(policy) for name, policy in policies.items()}


# ── the first weeks ─────────────────────────────────────────────────────────────────────────────────────────────────
def live(setting: Setting, folder: Path, choice: Choice, n: int, weeks: int) -> tuple[MadeUp, dict[str, float]]:
    """Let a shop of n new customers live through its first weeks; return it, and what the weeks brought and cost."""
    rows = dated(customer_rows(setting.judged, n, setting.seed, younger=False))
    shop = NewShop(rows, setting.seed, choice)
    made = MadeUp(rows, [], shop, [])
    made_up_shop.write_customers(folder, made, 1)
    env = setting.env(folder)
    generator = torch.Generator(setting.device).manual_seed(setting.seed)
    reference = env.population.draw(setting.believed.on_estimates.regression_customers, generator, "train")
    everybody = env.population.sample(torch.arange(n), generator)
    regression = ParameterRegression(reference, ridge=setting.believed.on_estimates.ridge)
    believed = Believed(
        customers=shop.world.inhabit(regression(everybody.features)),
        world=shop.world,
        start=setting.believed.on_estimates.start_belief(),
        fee=setting.fee,
        weekly=setting.weekly,
    )
    choice.prepare(believed)
    made.weeks.extend(shop.live() for _ in range(weeks))
    profit, spend = shop.profit_and_spend(made.weeks)
    return made, {"profit": profit, "spend": spend}


def judged_twin(
    setting: Setting, folder: Path, made: MadeUp, weeks: int, others: dict[str, list[SeasonRecord]]
) -> dict[str, Any]:
    """Fit a twin to the first `weeks`, plan on it, and judge the plan beside what needs no log in the true world."""
    made_up_shop.write_customers(folder, made, weeks)
    env, judge = setting.env(folder), setting.judge
    log = made_up_shop.import_weeks(folder, made, 0, weeks, env, setting.seed)
    started = time.process_time()
    twin = made_up_shop.fit_twin(setting.make_twin, env, log, setting.seed, folder / "twin.pt", None)
    seconds = time.process_time() - started
    estimates = estimates_of(twin, judge.features(env))
    seasons = judge.simulate(judge.plan(estimates, setting.believed.on_estimates.start_belief()))
    ahead = {name: judge.ahead(seasons, others[name]) for name in (RULES, PRIORS)}
    return {**judge.summary(seasons), "ahead_of": ahead, "seconds": seconds}


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def table_without_a_log(rows: dict[str, dict[str, float]]):
    """Lay out what policies without a log bring."""
    columns = ("score", "profit", "spend", "contacts")
    lines = [[name, f"{row['score']:.3f}", *(f"{row[key]:.2f}" for key in columns[1:])] for name, row in rows.items()]
    caption = "in the true world; score: share of what is provably attainable; the others: a customer and season"
    return text_table("without a log", ["policy", *columns], lines, caption)


def table_of_costs(rows: list[dict]):
    """Lay out what the first weeks bring and cost."""
    lines = [[x["choice"], f"{x['customers']:,}", f"{x['profit']:+.2f}", f"{x['spend']:.2f}"] for x in rows]
    caption = "profit: expected, beyond sending nothing, what is lost later included; spend: paid; money a customer"
    return text_table("the first weeks", ["decided by", "customers", "profit", "spend"], lines, caption)


def table_of_twins(rows: list[dict]):
    """Lay out what planning on a twin of the first weeks brings."""
    lines = []
    for x in rows:
        ahead = [f"{value:+.2f}" for name in (RULES, PRIORS) for value in x["ahead_of"][name]]
        lines.append([x["choice"], f"{x['customers']:,}", str(x["weeks"]), f"{x['score']:.3f}", *ahead])
    caption = (
        "less …: profit, money a customer and season, less that of the rules, and of planning on the priors, paired, "
        "with the 95 % interval over customers"
    )
    columns = ["decided by", "customers", "weeks", "score", "less rules", "from", "to", "less priors", "from ", "to "]
    return text_table("planning on a twin of the first weeks, judged in the true world", columns, lines, caption)

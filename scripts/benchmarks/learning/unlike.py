"""What a twin is worth where its equations are wrong: log → twin → policies, judged in worlds outside the family.

Usage:

    python scripts/bench.py learning/unlike
    python scripts/bench.py learning/unlike benchmark.ppo_steps=1920000
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from envs.data_collection import LoggingPolicy
from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.env import OffersEnv
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.evaluation.streams import TEST_MARKET, TEST_SEASONS
from envs.offers.planning.knapsack import Increments, ranked
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy, NoContact
from envs.offers.policies.belief_planner import BeliefPlanner, BeliefView
from envs.offers.policies.information import NOTHING, Information
from envs.offers.policies.learned import CodecView
from envs.offers.twin.checks.report import TwinEvaluator
from envs.offers.twin.ensemble import TwinEnsemble
from envs.offers.unlike.season import draw_uniforms, incremental_profit
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CustomerState
from envs.offers.world.hidden_observation import HidingCodec
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.runs import checkpoint
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.logs import log_seasons
from scripts.benchmarks.common.planning import ON_TWIN, estimates_of, plan_on_twin
from scripts.benchmarks.common.trained import store
from scripts.benchmarks.common.training import drift_at_home, evaluator_of, fit_to_log, train

RULE = "frequent buyers"


class FrequentBuyers:
    """A shop's rule: who bought most often this season gets one offer through one channel, as far as money goes.

    The expected spend of a contact is the shop's experience: the share of such contacts that its log has redeemed.
    """

    information = Information(NOTHING, ("history",))

    def __init__(self, codec: HidingCodec, features: Tensor, offer: int, channel: int, redeemed: float):
        self.view = CodecView(codec, features.float())
        self.action = int(codec.catalogue.action_codec.encode(torch.tensor(offer), torch.tensor(channel)))
        catalogue = codec.catalogue
        self.spend = (catalogue.cost[channel] + catalogue.value[offer] * redeemed).item()

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return one step a customer who may get the offer, ranked by purchases."""
        assert options.memory is not None  # the options of a market have it
        purchases = options.memory[:, 1].double()  # the first of the season's sums
        allowed = options.action_mask[:, self.action]
        score = torch.where(allowed, 1.0 + purchases, -torch.inf)
        return ranked(score, torch.full_like(score, self.spend), torch.full_like(state.status, self.action))


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    worlds: dict[str, Callable[..., OffersEnv]],
    family: Callable[..., OffersEnv],
    on_twin: Callable[..., OffersEnv],
    logging_policy: LoggingPolicy,
    twin: Callable[..., TwinEnsemble],
    ppo: Callable[..., NetworkAlgorithm],
    ppo_steps: int,
    decisions: int,
    agents: int,
    customers: int,
    seasons: int,
    fees: list[float],
    offer: int,
    channel: int,
) -> dict:
    """Log each world, fit a twin of the family to it, and compare policies by profit among `customers` new ones.

    PPO is trained on the twin for `ppo_steps`, 0 for none. `offer` and `channel` are those of the shop's rule.
    """
    shop = family(device, seed)  # what the shop believes: the family's equations
    check_pair(shop.world.catalogue, offer, channel)
    found: dict[str, dict] = {}
    for name, world in worlds.items():
        env, log = log_seasons(world, logging_policy, decisions, agents, device, 1000 + seed)
        model = fit_to_log(twin(shop, seed), log)
        path = directory / f"{name}.pt"
        store(path, "twin", model)
        check = model.make_evaluator()
        assert isinstance(check, TwinEvaluator)
        warnings = check.misfit(model, model.panel, model.held_out)
        market = market_in(env, shop, customers, seed)
        policies: dict[str, SeasonPolicy] = {
            "none": NoContact(),
            RULE: frequent_buyers(shop, market, log, offer, channel),
            **policies_on_twin(shop, model, market, fees),
        }
        if ppo_steps:
            home = on_twin(device, seed, twin=str(path))
            agent = train(ppo(home, seed, total_steps=ppo_steps))
            policies["PPO on the twin"] = evaluator_of(home).deploy_at_drift(agent, market, drift_at_home(agent))
        generator = torch.Generator(device).manual_seed(TEST_SEASONS + 1000 * seed)
        u = [draw_uniforms(market.world, customers, generator) for _ in range(seasons)]
        profit = incremental_profit(policies, market, u)
        found[name] = {"warnings": warnings, "rows": summarise(profit, RULE)}
        show(profit_table(name, found[name]["rows"], customers, seasons))
        print("warning: " + ("; ".join(warnings) or "none"), flush=True)
        checkpoint.save_json(directory / "rows.json", found)
    return {"worlds": found}


def market_in(env: OffersEnv, shop: OffersEnv, customers: int, seed: int) -> EvaluationMarket:
    """Draw new customers of a shop who live in the world of an environment."""
    generator = torch.Generator(shop.device).manual_seed(TEST_MARKET + 1000 * seed)
    sample = shop.population.draw(customers, generator, "test")
    return EvaluationMarket.from_sample(
        sample, env.world.to(shop.device, torch.float64), shop.budget, shop.contact_rules
    )


def frequent_buyers(
    shop: OffersEnv, market: EvaluationMarket, log: LoggedDataset, offer: int, channel: int
) -> FrequentBuyers:
    """Return the rule, whose forecast of redemptions is a log's. Raises ValueError where the log lacks the pair."""
    codec = shop.world.catalogue.action_codec
    contacts = log.action == codec.encode(torch.tensor(offer), torch.tensor(channel))
    if not contacts.any():
        raise ValueError(
            f"benchmark.offer={offer}, benchmark.channel={channel}: expected a pair that the log has, for the rule's "
            "forecast of redemptions"
        )
    redeemed = log.outcomes["redeemed"][contacts].float().mean().item()
    return FrequentBuyers(shop.codec, market.features, offer, channel, redeemed)


def check_pair(catalogue: Catalogue, offer: int, channel: int) -> None:
    """Raise ValueError where an offer (from 1) or a channel (from 0) is none of the catalogue's."""
    offers, channels = catalogue.nvec
    if not 1 <= offer < offers:
        raise ValueError(f"benchmark.offer: expected a number from 1 to {offers - 1}, got {offer}")
    if not 0 <= channel < channels:
        raise ValueError(f"benchmark.channel: expected a number from 0 to {channels - 1}, got {channel}")


def policies_on_twin(
    shop: OffersEnv, model: TwinEnsemble, market: EvaluationMarket, fees: list[float]
) -> dict[str, SeasonPolicy]:
    """Return planning and the myopic knapsack with a fee tuned on the twin, both under the filtered belief."""
    evaluator = evaluator_of(shop)
    world, start = evaluator.world, evaluator.on_estimates.start_belief()

    def on_twin(base: EvaluationMarket) -> EvaluationMarket:
        return base.with_customers(world.inhabit(estimates_of(model, base.features)), world)

    def myopic(base: EvaluationMarket, fee: float) -> KnapsackPolicy:
        view = BeliefView(base.customers, world, start)
        return BeliefPlanner(base.customers, world, ON_TWIN, view, values=None, fee=fee)

    tuning = on_twin(evaluator.tuning_market(evaluator.env.budget))

    def earned(fee: float) -> float:
        records = evaluator.simulate(myopic(tuning, fee), tuning, None, evaluator.tuning_seasons, 0)
        return sum(record.incremental_profit.sum().item() for record in records)

    return {
        "myopic + fee on the twin": myopic(on_twin(market), max(fees, key=earned)),
        "planning on the twin": plan_on_twin(evaluator, market, estimates_of(model, market.features), start),
    }


def summarise(profit: dict[str, Tensor], rule: str) -> dict[str, dict]:
    """Return each policy's profit a customer, how far it is ahead of a rule, and how far behind the last policy.

    Differences are paired by customer; all come with the half-widths of their 95 % intervals.
    """
    last = list(profit.values())[-1]
    rows: dict[str, dict] = {}
    for name, x in profit.items():
        rows[name] = {}
        for key, values in (("profit", x), ("ahead", x - profit[rule]), ("behind", last - x)):
            rows[name][key] = values.mean().item()
            rows[name][f"{key}_half_width"] = normal_half_width(values, LEVEL).item()
    return rows


def profit_table(name: str, rows: dict[str, dict], customers: int, seasons: int):
    """Lay a world's policies out."""
    keys = [x for key in ("profit", "ahead", "behind") for x in (key, f"{key}_half_width")]
    lines = [[policy, *(f"{row[key]:.3f}" for key in keys)] for policy, row in rows.items()]
    caption = (
        "money a customer over never contacting them, a season and its later weeks; ahead: of the rule for frequent "
        f"buyers; behind: {list(rows)[-1]}; both customer by customer; there is no bound in this world"
    )
    title = f"{name}: {customers:,} new customers, {seasons} seasons"
    return text_table(title, ["policy", "profit", "±", "ahead", "±", "behind", "±"], lines, caption)

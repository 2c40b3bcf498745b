"""Worlds outside the family: without their own effects they are the family; the effects are what they say."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import composed, node
from envs.offers.constraints.budget import Budget
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.logs.panel import to_panel
from envs.offers.planning.dynamic_program import no_contact_values
from envs.offers.policies.baselines import NoContact, RandomContacts
from envs.offers.unlike.season import draw_uniforms, incremental_profit, simulate_unlike_season
from envs.offers.unlike.world import UNLIKE_UNIFORMS
from envs.offers.world.customers import CustomerState
from envs.offers.world.transition import transition
from small_offers import random_season

CPU = torch.device("cpu")
WORLDS = ("unlike_link", "unlike_shocks", "unlike_segments")


def environment(world: str, agents: int = 40, seed: int = 0, **changes):
    """The environment of a world outside the family, with some keys of the world changed."""
    config = OmegaConf.merge(
        composed_env(world),
        {"num_agents": agents, "world": changes, "population": {"reference_size": 1000}},
    )
    return instantiate(config, _convert_="all")(CPU, seed)


def composed_env(world: str):
    """Compose env=offers_unlike with a world."""
    return composed("env=offers_unlike", f"env/world={world}").env


def states(n: int, generator: torch.Generator) -> CustomerState:
    """States of n customers, drawn from all that are subscribed or not."""
    levels = (6, 4, 3)
    h, f, d = (torch.randint(k, (n,), generator=generator) for k in levels)
    status = torch.randint(3, (n,), generator=generator)
    inside = (status == 0).long()
    return CustomerState(h * (status < 2), f * inside, d * inside, status)


@pytest.mark.slow
@pytest.mark.parametrize(
    "world, off",
    [
        ("unlike_shocks", {"shock": 0.0, "return_rate": 0.0, "late_rate": 0.0}),
        ("unlike_segments", {"put_off": -1.0, "tires": 1.0}),
    ],
)
def test_without_its_own_effects_it_is_the_family(world, off):
    env = environment(world, **off)
    generator = torch.Generator().manual_seed(1)
    c = env.world.to(CPU, torch.float64).inhabit(env.population.draw(500, generator, "train").customers)
    unlike = env.world.to(CPU, torch.float64)
    state, memory = states(500, generator), unlike.start_memory(c)
    for t in (0, 5, 11):
        offer, channel = torch.randint(6, (500,), generator=generator), torch.randint(5, (500,), generator=generator)
        u = torch.rand(UNLIKE_UNIFORMS, 500, generator=generator, dtype=torch.float64)
        week = unlike.advance(c, t, state, memory, offer, channel, u)
        after, bought, redeemed, _ = transition(c, unlike, t, state, offer, channel, u[:6])
        assert torch.equal(week.bought, bought) and torch.equal(week.redeemed, redeemed)
        assert all(torch.equal(a, b) for a, b in zip(week.state, after))
        torch.testing.assert_close(week.margin, c.margin * bought)
        state, memory = week.state, week.memory


@pytest.mark.long
def test_the_link_is_the_complementary_log_log_and_fatigue_comes_late():
    unlike = environment("unlike_link").world.to(CPU, torch.float64)
    generator = torch.Generator().manual_seed(1)
    one = unlike.inhabit(environment("unlike_link").population.draw(1, generator, "train").customers)
    n = 20000
    c = one[torch.zeros(n, dtype=torch.long)]
    fresh = torch.zeros(n, dtype=torch.long)
    state = CustomerState(fresh + 2, fresh, fresh, fresh)
    u = torch.rand(UNLIKE_UNIFORMS, n, generator=generator, dtype=torch.float64)
    alone = unlike.advance(c, 0, state, fresh, fresh, fresh, u)
    b = (one.alpha + one.kappa * 0.4 + unlike.offset).item()
    p = 1 - torch.tensor(-torch.tensor(b).exp().item()).exp().item()
    assert alone.bought.double().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)
    sent = unlike.advance(c, 0, state, fresh, fresh + 3, fresh + 1, u)
    subscribed = sent.state.status == 0
    assert (sent.state.fatigue == 0).all() and (sent.memory == 2).all()  # 1 + channel
    later = unlike.advance(c, 1, sent.state, sent.memory, fresh, fresh, u)
    steps = unlike.catalogue.fatigue_steps[1].item()
    assert (later.state.fatigue[subscribed & (later.state.status == 0)] == steps).all() and (later.memory == 0).all()


@pytest.mark.long
def test_the_churned_come_back_and_late_redemptions_cost_their_value():
    unlike = environment("unlike_shocks", shock=0.0, return_rate=0.3, late_rate=1.0).world.to(CPU, torch.float64)
    generator = torch.Generator().manual_seed(1)
    n = 5000
    c = unlike.inhabit(environment("unlike_shocks").population.draw(n, generator, "train").customers)
    zero = torch.zeros(n, dtype=torch.long)
    u = torch.rand(UNLIKE_UNIFORMS, n, generator=generator, dtype=torch.float64)
    week = unlike.advance(c, 0, CustomerState(zero, zero, zero, zero + 2), zero, zero, zero, u)
    back = (week.state.status == 0).double().mean().item()
    assert back == pytest.approx(0.3, abs=0.03) and not week.bought.any()
    week = unlike.advance(c, 0, CustomerState(zero + 3, zero, zero, zero), zero + 5, zero, zero, u)
    value = unlike.catalogue.value[5]
    torch.testing.assert_close(week.margin, (c.margin - value) * week.bought)
    assert week.bought.any() and not week.redeemed.any()


@pytest.mark.slow
def test_a_weeks_shock_is_one_for_all_customers_and_another_each_season():
    env = environment("unlike_shocks", shock=0.4, return_rate=0.0, late_rate=0.0)
    unlike = env.world.to(CPU, torch.float64)
    calm = environment("unlike_shocks", shock=0.0, return_rate=0.0, late_rate=0.0).world.to(CPU, torch.float64)
    n = 300
    c = unlike.inhabit(env.population.draw(n, torch.Generator().manual_seed(1), "train").customers)
    zero = torch.zeros(n, dtype=torch.long)
    state = CustomerState(zero + 2, zero, zero, zero)
    generator = torch.Generator().manual_seed(2)
    seasons = [draw_uniforms(unlike, n, generator) for _ in range(2)]
    for u in seasons:
        shocked = replace(c, alpha=c.alpha + 0.4 * NormalDist().inv_cdf(u[3, -1, 0].item()))
        week = unlike.advance(c, 3, state, zero, zero + 2, zero, u[3])
        wanted = calm.advance(shocked, 3, state, zero, zero + 2, zero, u[3])
        assert torch.equal(week.bought, wanted.bought) and torch.equal(week.redeemed, wanted.redeemed)
    shocks = [u[:, -1, 0] for u in seasons]
    assert (shocks[0] != shocks[1]).all() and len(shocks[0].unique()) == len(shocks[0])
    env.reset()
    first = env.uniforms[:, -1, 0].clone()
    env.reset()
    assert (first != env.uniforms[:, -1, 0]).all()  # of a log's seasons, too


@pytest.mark.long
def test_the_segment_is_a_product_of_two_parameters():
    unlike = environment("unlike_segments").world
    c = environment("unlike_segments").population.draw(4000, torch.Generator().manual_seed(0), "train").customers
    share = unlike.segment(c).double().mean().item()
    assert 0.35 < share < 0.65
    lower = replace(c, alpha=2 * unlike.middle[0] - c.kappa - c.alpha)  # the other side of the middle
    assert (unlike.segment(lower) != unlike.segment(c)).double().mean() > 0.999


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
def test_its_log_is_read_like_a_shops(world):
    env = environment(world)
    log = random_season(env)
    panel = to_panel(log, env, "log")
    assert panel.logged.all() and (panel.margin[panel.bought] > -10).all()
    assert 0.05 < panel.bought.double().mean() < 0.9 and panel.redeemed.any()
    with pytest.raises(ValueError, match="no dynamic program, so no bound"):
        env.evaluation(env)


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
def test_no_contact_earns_nothing_over_no_contact(world):
    env = environment(world)
    market = EvaluationMarket.from_sample(
        env.population.draw(30, torch.Generator().manual_seed(0), "test"),
        env.world.to(CPU, torch.float64),
        env.budget,
        env.contact_rules,
    )
    u = [draw_uniforms(market.world, 30, torch.Generator().manual_seed(k)) for k in range(2)]
    random = RandomContacts(market.customers, market.world, seed=0)
    found = incremental_profit({"none": NoContact(), "random": random}, market, u)
    assert (found["none"] == 0).all() and found["random"].abs().sum() > 0 and isinstance(env.budget, Budget)


@pytest.mark.long
def test_neither_world_is_taken_for_the_other():
    config = OmegaConf.merge(composed("env/world=unlike_link").env, {"num_agents": 10})
    family = instantiate(config, _convert_="all")(CPU, 0)
    with pytest.raises(ValueError, match="expected env=offers_unlike"):
        family.reset()
    config = OmegaConf.merge(composed_env("unlike_link"), {"num_agents": 10})
    config.world = node("offers_full_information").world
    with pytest.raises(ValueError, match="expected env/world=unlike_link"):
        instantiate(config, _convert_="all")(CPU, 0)
    config = OmegaConf.merge(composed_env("unlike_link"), {"num_agents": 10})
    config.observation = node("offers_full_information").observation
    with pytest.raises(ValueError, match="expected a view that hides the state"):
        instantiate(config, _convert_="all")(CPU, 0)


@pytest.mark.slow
def test_a_season_without_contacts_is_worth_what_the_familys_program_says():
    """In the world whose own effects are off, so that a wrong weight of the weeks after the season shows."""
    env = environment("unlike_segments", put_off=-1.0, tires=1.0)
    generator = torch.Generator().manual_seed(1)
    world = env.world.to(CPU, torch.float64)
    sample = env.population.draw(300, generator, "test")
    market = EvaluationMarket.from_sample(sample, world, env.budget, env.contact_rules)
    profit = torch.stack(
        [simulate_unlike_season(NoContact(), market, draw_uniforms(world, 300, generator)).profit for _ in range(30)]
    )
    family = copy(world)
    family.reward = replace(world.reward, terminal=1.0)
    value = no_contact_values(market.customers, family)[0].at(market.initial_state)
    difference = (profit.mean(0) - value).mean()
    error = (profit - profit.mean(0)).square().mean() ** 0.5 / (300 * 30) ** 0.5
    assert difference.abs() < 4 * error and error < 0.02 * value.mean()

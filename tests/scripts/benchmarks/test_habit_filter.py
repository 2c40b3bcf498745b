"""The world's organic weeks of households: against enumerated paths, as probabilities, simulated, and as a fit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hydra.utils import instantiate

from configs import composed

TRUE = {"alpha": -0.8, "kappa": 1.7, "pi_plus": 0.6, "pi_minus": 0.35, "nu": 0.5, "c0": 0.15, "gamma_h": 0.4}
SD, HABIT = 0.7, [0.4, 0.1, 0.1, 0.2, 0.15, 0.05]
CPU = torch.device("cpu")


def habit_filter(**changes):
    config = composed("benchmark=forecasting/journey", name="bench").benchmark
    made = instantiate({**config.habit_filter, **changes}, _convert_="all")
    world = instantiate(config.world, _convert_="all")
    return made(world(*(instantiate(x, _convert_="all") for x in (config.catalogue, config.reward))))


def true_filter(dtype=torch.float64):
    """A filter of three nodes with known parameters, and trips beyond the first that differ between households."""
    model = habit_filter(parameters=TRUE, alpha_sd=SD, nodes=3)
    model.world = model.world.to(CPU, dtype)
    model.line["habit"] = torch.tensor(HABIT, dtype=torch.float64).log()
    model.extra.average = torch.tensor([0.9, 0.5], dtype=dtype)
    model.extra.log_weights = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64).log()
    model.extra.shape = torch.tensor([0.8, 0.5], dtype=torch.float64)
    return model


def probability(alpha: float, habit: int | None, weeks: tuple) -> float:
    """P(weeks with a trip and without | α, habit; None: churned), by all paths of habit and churn."""
    if not weeks:
        return 1.0
    bought, rest = weeks[0], weeks[1:]
    if habit is None:
        return 0.0 if bought else probability(alpha, None, rest)
    p = 1 / (1 + math.exp(-(alpha + TRUE["kappa"] * habit / 5)))
    churn = min(0.5, TRUE["c0"] * math.exp(-TRUE["gamma_h"] * habit)) * (0.25 if bought else 1)
    if bought:
        move, moved = min(0.95, TRUE["pi_plus"] * (1 + TRUE["nu"] * (habit <= 1))), min(habit + 1, 5)
    else:
        move, moved = TRUE["pi_minus"], max(habit - 1, 0)
    stays = move * probability(alpha, moved, rest) + (1 - move) * probability(alpha, habit, rest)
    return (p if bought else 1 - p) * (churn * probability(alpha, None, rest) + (1 - churn) * stays)


def test_the_likelihood_is_the_sum_over_all_paths_of_habit_and_churn():
    """All seasons of four weeks, by Gauss–Hermite's three nodes 0 and ±√3 of weights 2/3 and 1/6."""
    model, seasons = true_filter(), list(itertools.product((0, 1), repeat=4))
    trips = torch.tensor(seasons, dtype=torch.float64)
    found = model.bought_log_prob(model.follow(trips[:, :0]), trips).sum(1).exp()
    nodes = ((0.0, 2 / 3), (math.sqrt(3), 1 / 6), (-math.sqrt(3), 1 / 6))
    for season, p in zip(seasons, found.tolist()):
        wanted = sum(
            weight * share * probability(TRUE["alpha"] + SD * at, habit, season)
            for at, weight in nodes
            for habit, share in enumerate(HABIT)
        )
        assert p == pytest.approx(wanted, rel=1e-10), season
    assert found.sum().item() == pytest.approx(1.0, abs=1e-10)
    # given a past: the ratio of the probabilities of both seasons
    later = model.bought_log_prob(model.follow(trips[:, :2]), trips[:, 2:]).sum(1).exp()
    first = model.bought_log_prob(model.follow(trips[:, :0]), trips[:, :2]).sum(1).exp()
    torch.testing.assert_close(first * later, found, rtol=1e-10, atol=0)


def test_all_counts_of_two_weeks_have_probability_one_and_are_drawn_so():
    model, past = true_filter(), torch.tensor([[2.0, 0, 1, 5]], dtype=torch.float64)
    seasons = torch.tensor(list(itertools.product(range(60), repeat=2)), dtype=torch.float64)
    found = model.log_prob(model.follow(past.expand(len(seasons), -1)), seasons).sum(1).exp()
    assert found.sum().item() == pytest.approx(1.0, abs=1e-6)
    n = 10_000
    known, generator = model.follow(past.expand(n, -1)), torch.Generator().manual_seed(0)
    drawn = torch.cat([model.simulate(known, 2, generator) for _ in range(8)])
    for season in itertools.product(range(3), repeat=2):
        said = found[season[0] * 60 + season[1]].item()
        seen = (drawn == torch.tensor(season)).all(1).double().mean().item()
        assert abs(seen - said) < 4 * math.sqrt(said / len(drawn)), season
    torch.testing.assert_close(drawn.mean(0), (found[:, None] * seasons).sum(0), rtol=0.02, atol=0)
    one = model.follow(past)  # a past serves many times
    torch.testing.assert_close(model.log_prob(one, drawn[:1]), model.log_prob(one, drawn[:1]), rtol=0, atol=0)


def test_extra_trips_follow_a_scalar_version():
    extra, weeks = true_filter().extra, [3, 0, 1, 5]
    total, active, recent, keep = 0.0, 0, 0.5, 0.5 ** (1 / 4)
    for y in weeks:
        total, active, recent = total + max(y - 1, 0), active + (y > 0), keep * recent + (1 - keep) * max(y - 1, 0)
    past = extra.remember(torch.tensor([weeks], dtype=torch.float64))[-1]
    assert [x.item() for x in past] == pytest.approx([active, total, recent])
    mean = 0.1 + 0.3 * (total + 2 * 0.9) / (active + 2) + 0.6 * recent
    shape = math.exp(0.8) * mean**0.5
    for y in (1, 2, 7):  # y − 1 failures before `shape` successes
        k = y - 1
        wanted = math.lgamma(k + shape) - math.lgamma(shape) - math.lgamma(y)
        wanted += shape * math.log(shape / (shape + mean)) + k * math.log(mean / (shape + mean))
        assert extra.log_prob(past, torch.tensor([y])).item() == pytest.approx(wanted)
    assert extra.log_prob(past, torch.tensor([0])).item() == -math.inf


def simulated(households: int, weeks: int, generator: torch.Generator) -> torch.Tensor:
    """Trips [H, W] by the world's organic equations, written out; extra trips are Poisson at a household's own rate."""

    def chance(p):
        return torch.rand(households, generator=generator) < p

    alpha = TRUE["alpha"] + 1.0 * torch.randn(households, generator=generator)
    habit = torch.multinomial(torch.tensor(HABIT), households, True, generator=generator)
    rate, alive, seen = 3 * torch.rand(households, generator=generator), torch.ones(households, dtype=torch.bool), []
    for _ in range(weeks):
        bought = chance(torch.sigmoid(alpha + TRUE["kappa"] * habit / 5)) & alive
        churn = (0.1 * torch.exp(-TRUE["gamma_h"] * habit)).clamp_max(0.5) * torch.where(bought, 0.25, 1.0)
        up = chance((TRUE["pi_plus"] * torch.where(habit <= 1, 1.5, 1.0)).clamp_max(0.95))
        down = chance(torch.full((households,), TRUE["pi_minus"]))
        alive = alive & ~chance(churn)
        habit = torch.where(bought, habit + up.long(), habit - down.long()).clamp(0, 5)
        seen.append(torch.where(bought, 1 + torch.poisson(rate, generator=generator), 0.0))
    return torch.stack(seen, 1)


@pytest.mark.long
def test_a_fit_predicts_as_well_as_the_truth():
    generator = torch.Generator().manual_seed(0)
    trips = simulated(1000, 26, generator)
    seen, test = trips[:, :20], trips[:, 20:]
    model = habit_filter(nodes=3, burn_in=0, iterations=20).to(CPU).fit(seen, generator)
    truth = habit_filter(parameters={**TRUE, "c0": 0.1}, alpha_sd=1.0, nodes=3).to(CPU)
    truth.line["habit"] = torch.tensor(HABIT, dtype=torch.float64).log()
    start = habit_filter(nodes=3).to(CPU)

    def bought(of, weeks, past):
        return of.bought_log_prob(of.follow(past), weeks).double()

    in_sample = [bought(of, seen, seen[:, :0]).mean() for of in (model, truth, start)]
    assert in_sample[0] > in_sample[1] - 0.001 > in_sample[2] + 0.01, in_sample
    apart = (bought(model, test, seen) - bought(truth, test, seen)).mean(1)
    assert abs(apart.mean()) < 0.002 + 3 * apart.std() / math.sqrt(len(apart)), apart.mean()
    assert model.fitted_parameters()["alpha_sd"] == pytest.approx(1.0, abs=0.3)
    drawn = torch.stack([model.simulate(model.follow(seen), 6, generator) for _ in range(20)]).mean(0)
    assert drawn.mean().item() == pytest.approx(test.mean().item(), rel=0.06)
    ours = model.log_prob(model.follow(seen), test).sum(1).mean()
    own = seen.mean(1, keepdim=True).clamp_min(0.01)
    assert ours > torch.distributions.Poisson(own).log_prob(test).sum(1).mean() + 1


def test_bad_settings_get_one_line():
    with pytest.raises(ValueError, match=r"habit_filter.parameters: no such parameter: alpa$"):
        habit_filter(parameters={"alpa": 1.0})
    with pytest.raises(ValueError, match="habit_filter.burn_in: expected fewer than the 4 weeks to fit to, got 12"):
        habit_filter().to(CPU).fit(torch.ones(3, 4), torch.Generator())

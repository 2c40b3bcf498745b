"""Forecast trips of real households in weeks that no model was fitted to.

Usage:

    python scripts/bench.py forecasting/journey
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.offers.populations.complete_journey_tables import read_tables, trip_times, weekly_trips
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import RewardConfig
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.runs.plots import COLORS, labelled, text_table
from scripts.benchmarks.common.display import save_figure
from scripts.benchmarks.common.display import show as show_table
from scripts.benchmarks.forecasting import bgnbd
from scripts.benchmarks.forecasting.habit_filter import HabitFilter
from scripts.benchmarks.forecasting.trip_model import Organic

OURS, FILTER, BGNBD = "network of the past", "twin's habit filter", "BG/NBD"


class Said(NamedTuple):
    """What a model says of the test weeks of H households."""

    log_prob: Tensor  # of a household's weeks, float64 [H]
    forecast: Tensor  # trips, from the last week of the fit, float64 [H, W]
    seconds: float | None = None  # CPU time of the fit
    bought: Tensor = torch.empty(0)  # log-probability of a trip or none in each week, given the weeks before, [H, W]


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    fit_weeks: list[int],
    test_weeks: list[int],
    organic: Callable,
    catalogue: Catalogue,
    reward: RewardConfig,
    world: Callable,
    habit_filter: Callable,
    simulations: int,
    level: float,
    bins: int,
) -> dict:
    """Fit on weeks `fit_weeks`, judge on `test_weeks`, first and last; print, draw, return.

    All models predict the same event, a household's trips in each of the test weeks, given its past. The
    log-probability of the event is a sum over weeks, in which the network, the filter and "so far" have seen the weeks
    before. Forecasts are from the last week of the fit. Households without a trip in the fit weeks have no past, and
    are left out for all models.
    """
    (first, last), (begin, end) = fit_weeks, test_weeks
    if begin != last + 1 or end <= begin:
        raise ValueError(
            f"benchmark.test_weeks: expected weeks from {last + 1} on, after benchmark.fit_weeks, got {test_weeks}"
        )
    tables = read_tables()
    everyone = weekly_trips(tables, first, end).to(device)
    counts = everyone[everyone[:, : last - first + 1].sum(1) > 0]
    seen, test = counts.split((last - first + 1, end - begin + 1), 1)
    torch.manual_seed(seed)
    models = {OURS: organic(), FILTER: habit_filter(world(catalogue, reward))}
    generator = torch.Generator(device).manual_seed(seed)
    rival, parameters = of_bgnbd(bought(tables, first, last, device), test)
    said = {
        **of_poisson(counts, seen, test),
        BGNBD: rival,
        **{name: of_model(model.to(device), seen, test, simulations, generator) for name, model in models.items()},
    }
    rows = {name: forecast_row(test.double(), x, said[OURS].log_prob, level) for name, x in said.items()}
    compared = filter_beside_others(said, level)
    calibrated = {name: calibration(said[name].bought, test, bins) for name in models}
    print_forecasts(rows, compared, fit_weeks, test_weeks, len(seen), len(everyone))
    for name, figure in (("weeks", weeks(counts, first, begin, said)), ("calibration", reliability(calibrated))):
        save_figure(directory, name, figure)
    return {
        "households": len(seen),
        "left_out": len(everyone) - len(seen),
        "bgnbd": parameters._asdict(),
        "habit_filter": models[FILTER].fitted_parameters(),
        "rows": rows,
        "filter_beside_others": compared,
        "actual": test.mean(0).tolist(),
        "calibration": calibrated,
    }


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def fitted(fit: Callable) -> tuple[Any, float]:
    """Return what a fit returns, and its CPU seconds."""
    began = time.process_time()
    return fit(), time.process_time() - began


def of_model(
    model: Organic | HabitFilter, seen: Tensor, test: Tensor, simulations: int, generator: torch.Generator
) -> Said:
    """Fit a model of weeks, and let it say of the test weeks [H, W] what it knows before each; simulate forecasts."""
    _, seconds = fitted(lambda: model.fit(seen, generator))
    past: Any = model.follow(seen)
    drawn = torch.stack([model.simulate(past, test.shape[1], generator) for _ in range(simulations)]).double().mean(0)
    log_prob, bought = model.log_prob(past, test).double().sum(1), model.bought_log_prob(past, test)
    return Said(log_prob, drawn, seconds, bought)


def of_poisson(counts: Tensor, seen: Tensor, test: Tensor) -> dict[str, Said]:
    """Take each household's mean of the fit weeks, or of all weeks so far, as the rate of its next week."""
    own = seen.mean(1, keepdim=True).double()
    so_far = counts.double().cumsum(1)[:, seen.shape[1] - 1 : -1] / torch.arange(
        seen.shape[1], counts.shape[1], device=counts.device
    )
    means = {"Poisson, own mean": own, "Poisson, own mean so far": so_far}
    return {name: Said(poisson(x, test).sum(1), own.expand_as(test)) for name, x in means.items()}


def of_bgnbd(made: bgnbd.Bought, test: Tensor) -> tuple[Said, bgnbd.Fit]:
    """Fit BG/NBD to histories, and let it say of the test weeks what it knows from them."""
    (rival, parameters), seconds = fitted(lambda: bgnbd.fit_bgnbd(made))
    forecast = expected(rival, made, test.shape[1]).to(test.device)
    return Said(bgnbd.log_prob(parameters, made, test), forecast, seconds), parameters


def poisson(mean: Tensor, count: Tensor) -> Tensor:
    """Log-probability of counts."""
    return torch.xlogy(count, mean) - mean - torch.lgamma(count + 1)


def bought(tables: dict, first: int, last: int, device: torch.device) -> bgnbd.Bought:
    """BG/NBD's statistics of each household that bought in the weeks first..last, in order of their ids."""
    by = trip_times(tables, first, last).groupby("household_id").time.agg(["size", "min", "max"])
    count, start, latest = (torch.tensor(by[name].to_numpy(float), device=device) for name in ("size", "min", "max"))
    return bgnbd.Bought(count - 1, latest - start, last - first + 1 - start)


def expected(rival, made: bgnbd.Bought, weeks: int) -> Tensor:
    """Trips [H, W] that Lifetimes expects in the future weeks."""
    repeats, last, time = (x.cpu().numpy() for x in made)
    total = torch.stack(
        [
            torch.zeros(len(repeats), dtype=torch.float64),
            *(
                torch.tensor(rival.conditional_expected_number_of_purchases_up_to_time(t, repeats, last, time))
                for t in range(1, weeks + 1)
            ),
        ],
        1,
    )
    return total.diff(dim=1)


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def mean_gain(gain: Tensor, level: float) -> list[float]:
    """Return the mean of a gain [H] over households, and its interval."""
    terms = ope.Terms(gain)
    return [intervals.estimate(terms).item(), *(x.item() for x in intervals.normal(terms, None, level))]


def forecast_row(test: Tensor, said: Said, ours: Tensor, level: float) -> dict:
    """One model's figures on the test weeks [H, W], and our gain over it, a household-week."""
    weeks, forecast = test.shape[1], said.forecast
    mean, actual = forecast.mean().item(), test.mean().item()
    return {
        "log_prob": said.log_prob.mean().item() / weeks,
        "total": said.log_prob.sum().item(),
        "gain": mean_gain((ours - said.log_prob) / weeks, level),
        "mean": mean,
        "error": mean / actual - 1,
        "weekly": forecast.mean(0).tolist(),
        "weekly_error": (forecast.mean(0) / test.mean(0) - 1).abs().mean().item(),
        "household_error": (forecast - test).mean(1).abs().mean().item(),
        "fit_seconds": said.seconds,
    }


def filter_beside_others(said: dict[str, Said], level: float) -> dict[str, list[float]]:
    """The filter's gain over BG/NBD, and the network's over it in telling weeks with a trip, a household-week."""
    twin, network, weeks = said[FILTER], said[OURS], said[FILTER].forecast.shape[1]
    return {
        "more_than_bgnbd": mean_gain((twin.log_prob - said[BGNBD].log_prob) / weeks, level),
        "bought": [x.double().mean().item() for x in (twin.bought, network.bought)],
        "network_more_bought": mean_gain((network.bought - twin.bought).double().mean(1), level),
    }


def calibration(bought: Tensor, test: Tensor, bins: int) -> dict[str, list[float]]:
    """Shares of weeks with a trip, predicted the week before and observed, in equal bins by prediction.

    `bought` [H, W] are log-probabilities of what happened, a trip or none.
    """
    active = (test > 0).flatten()
    said = torch.where(active, bought.flatten().exp(), -bought.flatten().expm1())
    parts = torch.tensor_split(said.argsort(), bins)
    return {
        "said": [said[part].mean().item() for part in parts],
        "seen": [active[part].float().mean().item() for part in parts],
    }


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────────
def print_forecasts(
    rows: dict, compared: dict, fit_weeks: list[int], test_weeks: list[int], households: int, everyone: int
) -> None:
    """Print the table, and the filter beside the others."""
    lines = [
        [
            name,
            f"{r['log_prob']:.4f}",
            f"{r['total']:,.0f}",
            *([""] * 3 if name == OURS else [f"{x:+.4f}" for x in r["gain"]]),
            f"{r['mean']:.4f}",
            f"{r['error']:+.2%}",
            f"{r['weekly_error']:.2%}",
            f"{r['household_error']:.4f}",
            "" if r["fit_seconds"] is None else f"{r['fit_seconds']:.1f}",
        ]
        for name, r in sorted(rows.items(), key=lambda item: item[1]["log_prob"])
    ]
    more, apart = (
        "{:+.4f} ({:+.4f} to {:+.4f})".format(*compared[name]) for name in ("more_than_bgnbd", "network_more_bought")
    )
    show_table(
        text_table(
            f"trips of {households:,} households in weeks {test_weeks[0]}–{test_weeks[1]}, "
            f"by models of weeks {fit_weeks[0]}–{fit_weeks[1]}",
            ("model", "log-prob.", "in all", "ours more", "from", "to", "trips", "off", "weeks off", "each off", "fit"),
            lines,
            f"log-prob.: of a household-week. Trips: forecast from week {fit_weeks[1]}, a household-week; "
            f"off over all, in a week,\nand of each household's mean trips a week. Fit: CPU seconds. "
            f"{everyone - households} households without a trip before are left out.\n"
            f"The {FILTER} has {more} more than {BGNBD}. Of a trip or none in a week it has "
            f"{compared['bought'][0]:.4f},\nthe network {compared['bought'][1]:.4f}: {apart} more.",
        )
    )


def weeks(counts: Tensor, first: int, begin: int, said: dict) -> Figure:
    """Draw mean weekly trips, observed and forecast."""
    figure, axes = labelled("week", "trips a household")
    axes.plot(range(first, first + counts.shape[1]), counts.mean(0).cpu(), color="black", linewidth=1, label="seen")
    for k, (name, x) in enumerate(said.items()):
        if "so far" not in name:
            axes.plot(range(begin, begin + x.forecast.shape[1]), x.forecast.mean(0).cpu(), color=COLORS[k], label=name)
    axes.axvline(begin - 0.5, color="grey", linestyle=":")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return figure


def reliability(calibrated: dict[str, dict]) -> Figure:
    """Draw the observed against the predicted share of weeks with a trip."""
    figure, axes = labelled("said: P(a trip this week)", "seen")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for name, found in calibrated.items():
        axes.plot(found["said"], found["seen"], marker="o", label=name)
    axes.legend(frameon=False)
    return figure

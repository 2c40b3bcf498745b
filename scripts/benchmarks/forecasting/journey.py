"""Forecast trips of real households in weeks that no model was fitted to.

Usage:

    python scripts/bench.py forecasting/journey
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.offers.populations.complete_journey_tables import read_tables, trip_times, weekly_trips
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.runs.plots import COLORS, labelled, text_table
from scripts.benchmarks.common.display import save_figure
from scripts.benchmarks.common.display import show as show_table
from scripts.benchmarks.forecasting import bgnbd
from scripts.benchmarks.forecasting.trip_model import Organic

OURS = "network of the past"


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    fit_weeks: list[int],
    test_weeks: list[int],
    organic: Callable,
    simulations: int,
    level: float,
    bins: int,
) -> dict:
    """Fit on weeks `fit_weeks`, judge on `test_weeks`, first and last; print, draw, return.

    All models predict the same event, a household's trips in each of the test weeks, given its past. The
    log-probability of the event is a sum over weeks, in which the network and "so far" have seen the weeks before.
    Forecasts are from the last week of the fit. Households without a trip in the fit weeks have no past, and are left
    out for all models.
    """
    (first, last), (begin, end) = fit_weeks, test_weeks
    if begin != last + 1 or end <= begin:
        raise ValueError(
            f"benchmark.test_weeks: expected weeks from {last + 1} on, after benchmark.fit_weeks, got {test_weeks}"
        )
    tables = read_tables()
    counts = weekly_trips(tables, first, end).to(device)
    kept = counts[:, : last - first + 1].sum(1) > 0
    seen, test = counts[kept].split((last - first + 1, end - begin + 1), 1)
    generator = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)
    model = organic().to(device).fit(seen, generator)
    past = model.remember(seen)[-1]
    drawn = sum(model.simulate(past, test.shape[1], generator) for _ in range(simulations)) / simulations
    own = seen.mean(1, keepdim=True).double()
    made = bought(tables, first, last, device)
    rival, parameters = bgnbd.fit_bgnbd(made)
    so_far = counts[kept].double().cumsum(1)[:, seen.shape[1] - 1 : -1] / torch.arange(
        seen.shape[1], counts.shape[1], device=device
    )
    said = {  # log-probability of a season [H], forecast from the last week of the fit [H, W]
        "Poisson, own mean": (poisson(own, test).sum(1), own.expand_as(test)),
        "Poisson, own mean so far": (poisson(so_far, test).sum(1), own.expand_as(test)),
        "BG/NBD": (bgnbd.log_prob(parameters, made, test), expected(rival, made, test.shape[1]).to(device)),
        OURS: (model.log_prob(past, test).double().sum(1), drawn.double()),
    }
    rows = {
        name: forecast_row(test.double(), log_prob, forecast, said[OURS][0], level)
        for name, (log_prob, forecast) in said.items()
    }
    calibrated = calibration(model, past, test, bins)
    print_forecasts(rows, fit_weeks, test_weeks, len(seen), len(counts))
    for name, figure in (("weeks", weeks(counts[kept], first, begin, said)), ("calibration", reliability(calibrated))):
        save_figure(directory, name, figure)
    return {
        "households": len(seen),
        "left_out": len(counts) - len(seen),
        "bgnbd": parameters._asdict(),
        "rows": rows,
        "actual": test.mean(0).tolist(),
        "calibration": calibrated,
    }


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


def forecast_row(test: Tensor, log_prob: Tensor, forecast: Tensor, ours: Tensor, level: float) -> dict:
    """One model's figures on the test weeks [H, W], and our gain over it, a household-week."""
    weeks = test.shape[1]
    gain = ope.Terms((ours - log_prob) / weeks)
    mean, actual = forecast.mean().item(), test.mean().item()
    return {
        "log_prob": log_prob.mean().item() / weeks,
        "total": log_prob.sum().item(),
        "gain": [intervals.estimate(gain).item(), *(x.item() for x in intervals.normal(gain, None, level))],
        "mean": mean,
        "error": mean / actual - 1,
        "weekly": forecast.mean(0).tolist(),
        "weekly_error": (forecast.mean(0) / test.mean(0) - 1).abs().mean().item(),
        "household_error": (forecast - test).mean(1).abs().mean().item(),
    }


def calibration(model: Organic, past, test: Tensor, bins: int) -> dict[str, list[float]]:
    """Shares of weeks with a trip, predicted the week before and observed, in equal bins by prediction."""
    weekly = []
    for week in test.T:
        with torch.no_grad():
            weekly.append(-model(past).log_prob(torch.zeros_like(week)).expm1())
        past = model.after(past, week)
    said, active = torch.stack(weekly, 1).flatten(), (test > 0).float().flatten()
    parts = torch.tensor_split(said.argsort(), bins)
    return {
        "said": [said[part].mean().item() for part in parts],
        "seen": [active[part].mean().item() for part in parts],
    }


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────────
def print_forecasts(rows: dict, fit_weeks: list[int], test_weeks: list[int], households: int, everyone: int) -> None:
    """Print the table."""
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
        ]
        for name, r in sorted(rows.items(), key=lambda item: item[1]["log_prob"])
    ]
    show_table(
        text_table(
            f"trips of {households:,} households in weeks {test_weeks[0]}–{test_weeks[1]}, "
            f"by models of weeks {fit_weeks[0]}–{fit_weeks[1]}",
            ("model", "log-prob.", "in all", "ours more", "from", "to", "trips", "off", "weeks off", "each off"),
            lines,
            f"log-prob.: of a household-week. Trips: forecast from week {fit_weeks[1]}, a household-week; "
            f"off over all, in a week,\nand of each household's mean trips a week. "
            f"{everyone - households} households without a trip before are left out.",
        )
    )


def weeks(counts: Tensor, first: int, begin: int, said: dict) -> Figure:
    """Draw mean weekly trips, observed and forecast."""
    figure, axes = labelled("week", "trips a household")
    axes.plot(range(first, first + counts.shape[1]), counts.mean(0).cpu(), color="black", linewidth=1, label="seen")
    for k, (name, (_, forecast)) in enumerate(said.items()):
        if "so far" not in name:
            axes.plot(range(begin, begin + forecast.shape[1]), forecast.mean(0).cpu(), color=COLORS[k], label=name)
    axes.axvline(begin - 0.5, color="grey", linestyle=":")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return figure


def reliability(found: dict[str, list[float]]) -> Figure:
    """Draw the observed against the predicted share of weeks with a trip."""
    figure, axes = labelled("said: P(a trip this week)", "seen")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot(found["said"], found["seen"], marker="o")
    return figure

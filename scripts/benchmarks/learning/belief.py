"""What the filter knows of the hidden state, and whether its predictions are calibrated.

Usage:

    python scripts/bench.py learning/belief
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from envs.offers.env import OffersEnv
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.twin.checks.filter_misfits import Decisions, deciles, misfits, predict_season
from envs.offers.world.belief_observation import start_marginals
from envs.offers.world.customers import CHURNED, Customers, World
from envs.offers.world.filtering import CHUNK, NUM_MARGINALS, Belief, filter_week
from envs.offers.world.observation import DYNAMICS
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.seasons import SeenSeason, random_season


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    known: Callable[..., OffersEnv],
    estimated: Callable[..., OffersEnv],
    customers: int,
    reference_size: int,
    ridge: float,
    since: int,
    level: float,
) -> dict:
    """Filter random seasons; print and return knowledge by week, and calibration by decile.

    In the environment `known` the filter has the true θ, in `estimated` θ̂, predicted from features. Deciles are of
    weeks from `since` (from 0) on; `level` is that of misfits.
    """
    found = {}
    for name, env in (("true θ", known), ("θ̂", estimated)):
        offers = env(device, seed)
        generator = torch.Generator(device).manual_seed(seed)
        reference = offers.population.draw(reference_size, generator, "train")
        season = random_season(offers.population, offers.world, customers, generator)
        c = season.customers
        if env is estimated:
            c = offers.world.inhabit(ParameterRegression(reference, ridge=ridge)(season.features))
        start = start_marginals(reference.state)
        weeks = knowledge(c, offers.world, start, season)
        predicted = predict_season(c, offers.world, start, season.seen)
        tenths = {outcome: deciles(x, slice(since, None)) for outcome, x in predicted.items()}
        wrong = misfits(predicted, Decisions.of_season(season.seen), offers.world.catalogue, level)
        found[name] = {"knowledge": weeks, "deciles": tenths, "misfits": wrong}
        show(knowledge_table(name, weeks))
        show(decile_table(name, tenths))
        print("can't be explained: " + ("; ".join(wrong) or "nothing"), flush=True)
    return found


@torch.no_grad()
def knowledge(c: Customers, world: World, start: Tensor, season: SeenSeason) -> list[dict]:
    """Return, for the start of each week: the entropy of the state, and correlations of means with the true states."""
    weeks: list[list[tuple[Tensor, Tensor]]] = [[] for _ in season.states]
    for first in range(0, len(c), CHUNK):
        rows = slice(first, first + CHUNK)
        some = c[rows]
        marginals = start.to(some.alpha)[:, None].expand(-1, len(some))
        belief = Belief.from_marginals(marginals, torch.zeros_like(season.seen[0].bought[rows]))
        for t in range(len(season.states)):
            weeks[t].append((belief.entropy(), belief.marginals()))
            if t < len(season.seen):
                belief, _ = filter_week(some, world, t, belief, season.seen[t].take(rows))
    result = []
    for state, parts in zip(season.states, weeks):
        entropy, marginals = (torch.cat(x, -1) for x in zip(*parts))
        active = state.status != CHURNED
        row: dict[str, float | None] = {"entropy": entropy.mean().item()}
        for (name, levels), p, truth in zip(
            DYNAMICS.items(), marginals[:NUM_MARGINALS].split(list(DYNAMICS.values())), state
        ):
            mean = (p * torch.arange(levels, device=p.device)[:, None]).sum(0)
            row[name] = correlation(mean[active], truth[active].to(mean))
        row["churned"] = correlation(marginals[-1], (~active).to(entropy))
        result.append(row)
    return result


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Return Pearson's correlation, None where a column does not vary."""
    if x.std() < 1e-6 or y.std() < 1e-6:
        return None
    return torch.corrcoef(torch.stack((x, y)))[0, 1].item()


def knowledge_table(name: str, known: list[dict]):
    """Lay out what is known at the start of each week."""
    columns = list(known[0])
    rows = [
        [str(t + 1), *("-" if row[key] is None else f"{row[key]:.3f}" for key in columns)]
        for t, row in enumerate(known)
    ]
    caption = "entropy of the state, nats (79 states: 4.37); correlations of filtered means with true states"
    return text_table(f"{name}: known at the start of a week", ["week", *columns], rows, caption)


def decile_table(name: str, tenths: dict):
    """Lay out the calibration of filtered predictions."""
    rows = [
        [outcome, str(k + 1), f"{x.predicted:.4f}", f"{x.observed:.4f}", f"{x.z:+.1f}"]
        for outcome, tenth in tenths.items()
        for k, x in enumerate(tenth)
    ]
    return text_table(f"{name}: filtered predictions", ["outcome", "decile", "predicted", "observed", "z"], rows)

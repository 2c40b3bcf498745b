"""Learn the effect of a contact from a log with selection bias towards likely buyers.

Usage:

    python scripts/bench.py learning/confounding
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from envs.data_collection import LoggingPolicy, UniformPolicy
from envs.offers.env import OffersEnv
from envs.offers.populations.base import theta_from_matrix
from envs.offers.world.response import outcome
from rlcore.offline.deduplicated import dense
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.cross_fitting import consecutive_ids
from rlcore.runs.plots import text_table
from rlcore.uplift.fitted_models import predict_chunked
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.logs import log_seasons


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    logging_policy: LoggingPolicy,
    learners: dict,
    seeds: int,
    customers: int,
    new: int,
) -> dict:
    """Learn the effect of a contact (by any pair) on trips; return error, bias and correlation to the truth."""
    rows: dict[str, dict[str, list[float]]] = {name: {"rmse": [], "bias": [], "correlation": []} for name in learners}
    for k in range(seed, seed + seeds):
        world, log = collected(env, logging_policy, customers, device, 1000 + k)
        _, others = collected(env, UniformPolicy(), new, device, 2000 + k)
        truth, width = effect(world, others), world.context_dim
        contacted = (log.action > 0).long()
        assert log.probs is not None  # `collected` asks for them
        nothing = log.probs[:, 0].double()
        for name, learner in learners.items():
            fit = learner(
                log.obs[:, :width],
                contacted,
                log.outcomes["trips"][:, None],
                2,
                torch.Generator(device).manual_seed(k),
                propensity=torch.where(contacted > 0, 1 - nothing, nothing),
                cluster=consecutive_ids(log.unit),
            )
            with torch.no_grad():
                said = predict_chunked(fit, others.obs[:, :width])[..., 0].double()
            error = said[:, 1] - said[:, 0] - truth
            rows[name]["rmse"].append(error.square().mean().sqrt().item())
            rows[name]["bias"].append(error.mean().item())
            rows[name]["correlation"].append(torch.corrcoef(torch.stack((error + truth, truth)))[0, 1].item())
    table = text_table(
        f"effect of a contact on P(trip), {truth.mean():.4f} on average, {seeds} logs of {customers:,} customers",
        ["learner", "error", "of seeds", "bias", "correlation"],
    )
    for name, found in rows.items():
        mean = {key: sum(x) / len(x) for key, x in found.items()}
        table.add_row(
            name,
            f"{mean['rmse']:.4f}",
            f"{min(found['rmse']):.4f} to {max(found['rmse']):.4f}",
            f"{mean['bias']:+.4f}",
            f"{mean['correlation']:.3f}",
        )
    show(table)
    return {"rows": rows}


def collected(
    env: Callable[..., OffersEnv], logging_policy: LoggingPolicy, customers: int, device: torch.device, seed: int
) -> tuple[OffersEnv, LoggedDataset]:
    """A season's environment, and its decisions with more than one allowed action."""
    world, log = log_seasons(env, logging_policy, 1, customers, device, seed, all_propensities=True)
    return world, log[dense(log.action_mask).sum(1) > 1]


def effect(env, log: LoggedDataset) -> Tensor:
    """The increase of P(trip) by a contact drawn from all pairs, [N]; θ follows from features of r2 = 1."""
    population, (offers, channels) = env.population, env.nvec
    world = env.world.to(env.device, torch.float64)
    z = log.obs[:, : env.static_dim].double() @ population.mixing.T.to(env.device)
    c = world.inhabit(theta_from_matrix(population.mean.to(z) + population.std.to(z) * z))
    h, f, d = (x.double() for x in env.codec.decode_state(dense(log.obs))[:3])

    def trips(offer: int, channel: int) -> Tensor:
        o = outcome(c, world, log.step, h, f, d, torch.full_like(log.step, offer), torch.full_like(log.step, channel))
        return o.redeem + o.buy

    contacts = [trips(offer, channel) for offer in range(1, offers) for channel in range(channels)]
    return torch.stack(contacts).mean(0) - trips(0, 0)

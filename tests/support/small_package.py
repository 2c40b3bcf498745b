"""A tiny customer table, an untrained policy on it whose logits differ, and its package."""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from configs import composed
from envs.live.export import export
from envs.live.package import Package
from rlcore.runs import checkpoint
from scripts.shared.cli import to_dict

LEVELS = ["gold", 'say "hi", all', "мёд 茶", "x" * 10_000, ""]
TODAY = "2025-03-31"
SMALL = [
    "env.num_agents=40",
    "env.population.min_level_count=5",
    "env/observation=history",
    "env/contact_rules=caps",
    "algo.network.hidden=[16,16]",
    "algo.auxiliary.hidden=[8]",
    "env.evaluation.price_grid.points=8",
]


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of customers: numbers with gaps and without, dates, yes or no, text with odd levels."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 4, generator=generator).tolist()
    return [
        {
            "id": f"c{k}",
            "rate": round(0.1 + 0.8 * a, 3),
            "spend": round(10 + 40 * b, 2),
            "margin": 0.25,
            "age": "" if k % 6 == 0 else 18 + int(60 * c),
            "joined": (dt.date(2025, 3, 31) - dt.timedelta(days=int(900 * d))).isoformat(),
            "app": "true" if k % 3 else "false",
            "tier": LEVELS[k % len(LEVELS)] if k % 40 else f"rare {k}",
        }
        for k, (a, b, c, d) in enumerate(u)
    ]


def write_table(path: Path, table: list[dict[str, Any]]) -> Path:
    """Write rows as a CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def config_of(folder: Path, *overrides: str) -> dict[str, Any]:
    """Compose a run on the table in a folder."""
    path = write_table(folder / "customers.csv", rows(300))
    table = ["env/population=customer_table", f"env.population.path={path}", f"env.population.reference_date={TODAY}"]
    return to_dict(composed(*table, *SMALL, *overrides), resolve=True)


def untrained(config: dict[str, Any]):
    """Build environment and agent, with weights that make choices differ from customer to customer."""
    env = instantiate(config["env"], _convert_="all")(torch.device("cpu"), 0)
    agent = instantiate(config["algo"], _convert_="all")(env, 0)
    env.reset()  # so that features have a range
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (agent.network, agent.auxiliary.net):
            for weight in network.parameters():
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return env, agent


def save(path: Path, config: dict[str, Any], agent) -> Path:
    """Write a checkpoint as scripts/train.py does."""
    state = {"agent": agent.state_dict(), "shards": [{}], "logger": {}, "name": "ppo", "config": config}
    checkpoint.save(path, state)
    return path


def export_small(folder: Path, config: dict[str, Any], env, agent) -> Package:
    """Export the policy as FOLDER/policy."""
    return export(
        folder / "policy",
        env,
        agent,
        name="ppo",
        config=config,
        metrics=folder / "metrics.json",
        drift=None,
        source="checkpoint.pt",
    )

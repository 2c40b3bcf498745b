"""Compare uplift learners on a real shop's e-mails by the Qini coefficient.

Usage:

    python scripts/bench.py uplift/qini benchmark.path=hillstrom.parquet
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlcore.ope.intervals import LEVEL, normal_quantile
from rlcore.runs import checkpoint
from rlcore.runs.plots import COLORS, labelled, text_table
from rlcore.uplift import comparison
from rlcore.uplift import metrics as uplift
from rlcore.uplift.selection import Effects, Experiment
from scripts.benchmarks.common.display import save_figure
from scripts.benchmarks.common.display import show as show_table
from scripts.benchmarks.uplift.hillstrom import read_hillstrom
from scripts.benchmarks.uplift.peers import peers
from scripts.benchmarks.uplift.qini_splits import OURS, Split, split, summarise_splits


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    path: str | None,
    outcome: str,
    mails: dict[str, list[int]],
    splits: int,
    fold_count: int,
    learners: dict,
    boosters: dict,
    level: float,
    replications: int,
    bins: int,
    repeats: int,
) -> dict:
    """Fit every learner on halves of the customers, compare Qini coefficients on the other halves; print, draw, return.

    `mails` names the arms that count as treated; all other arms but "no mail" are left out. Cross-validation by Qini
    chooses one of `learners` in each learning half. The best peer is the one that is best on the test halves, in
    hindsight.
    """
    warnings.filterwarnings("ignore", module="sklift|sklearn")  # deprecation warnings
    trial, columns = read_hillstrom(path)
    if outcome not in trial.outcomes:
        raise ValueError(f"benchmark.outcome: expected one of {', '.join(trial.outcomes)}, got '{outcome}'")
    rivals, found = peers(boosters), {}
    features, arm, propensity = (x.to(device) for x in (trial.features, trial.arm, trial.propensity))
    value = trial.outcomes[outcome].float().to(device)
    for mail, arms in mails.items():
        kept = torch.isin(arm, torch.tensor([0, *arms], device=device)).nonzero()[:, 0]
        mailed = (arm[kept] > 0).long()
        everyone = Experiment(kept, features[kept], mailed, value[kept], propensity[kept])
        made = [split(everyone, learners, rivals, k, fold_count, 0.0) for k in range(seed, seed + splits)]
        drawn = comparison.bootstrap_metrics(
            [one.tested() for one in made], len(arm), replications, torch.Generator(device).manual_seed(seed)
        ).mean(0)
        rows, first = summarise_splits(made, drawn, list(rivals), level), made[0]
        winner = max(rivals, key=lambda name: rows[name]["qini"][0])
        parts = [uplift.by_bin(one.test.outcome, one.scores[OURS], one.test.action > 0, bins) for one in made]
        lost = comparison.drivers(
            partial(score_of, first.effects),
            first.test.obs,
            first.test.outcome,
            first.test.action > 0,
            columns,
            repeats,
            torch.Generator(device).manual_seed(seed),
        )
        found[mail] = {
            "customers": len(kept),
            "rates": {
                name: everyone.outcome[of].mean().item()
                for name, of in (("treated", mailed > 0), ("others", mailed == 0))
            },
            "rows": rows,
            "best_peer": winner,
            "drivers": lost,
            "chosen": [{"name": one.chosen, "validated": one.validated} for one in made],
            "bins": [{name: column.tolist() for name, column in part._asdict().items()} for part in parts],
        }
        print_mail(mail, outcome, found[mail])
        short = "_".join("".join(c for c in mail if c.isalnum() or c == " ").split())
        for name, figure in (
            ("qini", curves(made, [OURS, winner], f"{outcome}s gained, % of customers")),
            ("deciles", deciles(parts, outcome)),
        ):
            save_figure(directory, f"{name}_{short}", figure)
        checkpoint.save_json(directory / "mails.json", found)
    return {"outcome": outcome, "mails": found}


def score_of(effects: Effects, obs: Tensor) -> Tensor:
    """Return a learner's predicted effects of a mail on customers [N, D], [N]."""
    return effects(obs)[:, 1]


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────────
def print_mail(mail: str, outcome: str, found: dict) -> None:
    """Print the table of one mail."""
    rows = sorted(found["rows"].items(), key=lambda item: item[1]["qini"][0])
    lines = [
        [
            name,
            "peer" if row["peer"] else "ours",
            *(f"{x:.4f}" for x in (*row["qini"], row["auuc"])),
            str(row["times_chosen"] or ""),
            *("" if name == OURS else f"{x:+.4f}" for x in row["ours_less"]),
        ]
        for name, row in rows
    ]
    rates, splits = found["rates"], len(found["chosen"])
    show_table(
        text_table(
            f"{mail} mail or none, {outcome}: {found['customers']:,} customers, {rates['treated']:.2%} with, "
            f"{rates['others']:.2%} "
            f"without; mean of {splits} test halves",
            ("learner", "whose", "Qini", "from", "to", "AUUC", "chosen", "ours less it", "from", "to"),
            lines,
            f"best of the peers: {found['best_peer']}; won: {rows[-1][0]}. "
            f"Chosen: times of {splits}, in the learning half.\n"
            "Qini lost when shuffled: " + ", ".join(f"{name} {value:.4f}" for name, value in found["drivers"].items()),
        )
    )


def curves(made: list[Split], names: list[str], label: str) -> Figure:
    """Draw Qini curves, mean over splits."""
    figure, axes = labelled("customers treated, best first, %", label)
    at = torch.linspace(0, 1, 201, dtype=torch.float64)
    for k, name in enumerate(names):
        lines = []
        for one in made:
            x, y = (
                part.cpu() / len(one.test.unit)
                for part in uplift.qini_curve(one.test.outcome, one.scores[name], one.test.action > 0)
            )
            right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
            part = (at - x[right - 1]) / (x[right] - x[right - 1])
            lines.append(y[right - 1] + part * (y[right] - y[right - 1]))
        mean = torch.stack(lines).mean(0)
        axes.plot(100 * at, 100 * mean, color=COLORS[k], label=name)
    axes.plot([0, 100], [0, 100 * mean[-1].item()], color="grey", linestyle=":", label="random")
    axes.legend(frameon=False)
    return figure


def deciles(parts: list[uplift.Bins], outcome: str) -> Figure:
    """Draw predicted and observed effects by bin, means over splits.

    Bars are 95 % intervals by the sampling error of one split.
    """
    figure, axes = labelled("customers by predicted effect, best first", f"{outcome}s gained a mail")
    seen, std, said = (
        torch.stack([getattr(part, name) for part in parts]).nanmean(0) for name in ("uplift", "std", "score")
    )
    places = np.arange(1, len(seen) + 1)
    axes.bar(places, seen.numpy(), yerr=normal_quantile(LEVEL) * std.numpy(), color=COLORS[0], alpha=0.6, label="seen")
    axes.plot(places, said.numpy(), color=COLORS[1], marker="o", label="predicted")
    axes.set_xticks(places)
    axes.legend(frameon=False)
    return figure

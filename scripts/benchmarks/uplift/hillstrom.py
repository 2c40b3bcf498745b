"""A policy for a real shop's randomised e-mails.

Usage:

    python scripts/bench.py uplift/hillstrom benchmark.path=hillstrom.parquet
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from envs.offers.logs.schema import COLUMNS
from rlcore.offline.deduplicated import dense
from rlcore.offline.logged_dataset import LoggedDataset, check_rows
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.ope.cross_fitting import cross_fit, folds
from scripts.benchmarks.common.display import show, table_of

ARMS = {"No E-Mail": "no mail", "Mens E-Mail": "men's mail", "Womens E-Mail": "women's mail"}
OUTCOMES = ("visit", "conversion", "spend")


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    path: str | None,
    margin: float,
    cost: float,
    model: Callable,
    fold_count: int,
    level: float,
    draws: int,
) -> dict:
    """Learn a mail policy on one half of the customers, value it on the other half by DR; print and return.

    A mail costs `cost`, and the shop keeps a share `margin` of what is spent. Policies are learned from profit, or from
    visits, each valued at the mean profit of an arm's visits: a visit is ten times as frequent as an order.
    """
    log, shop, _ = as_log(path, margin, cost)
    log = log.to(device)
    arms = {
        name: {key: shop[key][log.action.cpu() == k].mean().item() for key in OUTCOMES}
        | {"customers": int((log.action == k).sum())}
        for k, name in enumerate(ARMS.values())
    }
    show(
        table_of(
            "arms as randomised, all customers",
            ("arm", *OUTCOMES, "customers"),
            [
                [
                    name,
                    f"{row['visit']:.5f}",
                    f"{row['conversion']:.6f}",
                    f"{row['spend']:.4f}",
                    f"{row['customers']:,}",
                ]
                for name, row in arms.items()
            ],
        )
    )
    generator = torch.Generator(device).manual_seed(seed)
    order = torch.randperm(len(log), generator=generator, device=device)
    learn, judge = order.chunk(2)
    targets = learn_policies(log[learn], shop["visit"].to(device)[learn], model, log.obs[judge], generator)
    means = torch.stack([log.reward[learn][log.action[learn] == k].mean() for k in range(3)])
    best = int(means.argmax())
    for k, name in enumerate(ARMS.values()):
        targets[name] = one_hot(torch.full_like(judge, k), 3).double()
    rivals = {"best arm": list(ARMS.values())[best], "no mail": "no mail"}
    rows = judged(log[judge], targets, rivals, model, fold_count, level, draws, generator)
    lines = [
        [
            name,
            f"{row['profit'][0]:.3f}",
            half(row["profit"]),
            f"{row['spend'][0]:.3f}",
            *(x for rival in rivals for x in (f"{row[rival][0]:+.3f}", half(row[rival]))),
        ]
        for name, row in sorted(rows.items(), key=lambda item: item[1]["profit"][0])
    ]
    show(
        table_of(
            f"{len(judge):,} customers not learned from, a customer: margin {margin:g} of spend, {cost:g} a mail",
            ("policy", "profit", "±", "spend", "over best", "±", "over none", "±"),
            lines,
            f"best: {rivals['best arm']}, the best single arm of the other half; none: no mail at all",
        )
    )
    return {"arms": arms, "best_arm": rivals["best arm"], "policies": rows, "margin": margin, "cost": cost}


def as_log(
    path: str | None, margin: float, cost: float
) -> tuple[LoggedDataset, dict[str, Tensor], dict[str, list[int]]]:
    """Read the shop's customers as decisions of one step, propensity 1/3.

    Also returns their outcomes [N] by name, and the columns of observations by feature.
    """
    import pandas as pd

    if path is None or not Path(path).is_file():
        raise ValueError(f"benchmark.path: expected the file of Hillstrom's e-mail challenge, got {path}")
    frame = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
    needed = ["recency", "history", "mens", "womens", "newbie", "zip_code", "channel", "segment", *OUTCOMES]
    lacking = [name for name in needed if name not in frame.columns]
    if lacking:
        raise ValueError(f"{path}: no column '{lacking[0]}'; there are {', '.join(frame.columns)}")
    unknown = ~frame["segment"].isin(ARMS)
    if unknown.any():
        raise ValueError(
            f"{path}: row {unknown.to_numpy().argmax() + 2}, column 'segment': expected one of "
            f"{', '.join(ARMS)}, got '{frame['segment'][unknown].iloc[0]}'"
        )
    numeric, named = ["recency", "history", "mens", "womens", "newbie"], ["zip_code", "channel"]
    numbers = torch.tensor(frame[numeric].to_numpy(float))
    numbers[:, 1] = numbers[:, 1].log1p()
    levels = pd.get_dummies(frame[named])
    dummies = torch.tensor(levels.to_numpy(float))
    columns = {
        name: [
            k
            for k, column in enumerate([*numeric, *levels])
            if column == name or (name in named and column.startswith(f"{name}_"))
        ]
        for name in (*numeric, *named)
    }
    action = torch.tensor(frame["segment"].map({name: k for k, name in enumerate(ARMS)}).to_numpy())
    outcomes = {name: torch.tensor(frame[name].to_numpy(float)) for name in OUTCOMES}
    n, zeros = len(frame), torch.zeros(len(frame))
    rows, mailed = torch.arange(n), cost * (action > 0)
    log = LoggedDataset(
        nvec=(3,),
        static_dim=numbers.shape[1] + dummies.shape[1],
        policies=("randomised",),
        names=COLUMNS,
        decision=rows,
        unit=rows,
        episode=torch.zeros_like(rows),
        step=torch.zeros_like(rows),
        policy=torch.zeros_like(rows),
        obs=torch.cat((numbers, dummies), 1).float(),
        action_mask=torch.ones(n, 3, dtype=torch.bool),
        action=action,
        propensity=torch.full((n,), 1 / 3, dtype=torch.float64),
        probs=torch.full((n, 3), 1 / 3),
        price=zeros,
        reward=(margin * outcomes["spend"] - mailed).float(),
        cost=mailed.float(),
        terminal_value=zeros,
        outcomes={"conversion": outcomes["conversion"].float()},
        terminated=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
    )
    check_rows(log, path, 0)
    return log, outcomes, columns


def learn_policies(
    log: LoggedDataset, visit: Tensor, model: Callable, obs: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Policies [N, 3] for customers `obs` [N, D], learned from a log and its visits."""
    earned = torch.stack(
        [(log.reward + log.cost)[log.action == k].mean() / visit[log.action == k].mean() for k in range(3)]
    )
    cost = torch.stack([log.cost[log.action == k].mean() for k in range(3)])
    predict = model(log.obs, log.action, torch.stack((log.reward.double(), visit), 1), 3, generator)
    profit, visits = predict(obs).unbind(2)
    return {
        "by profit": one_hot(profit.argmax(1), 3).double(),
        "by visits": one_hot((visits * earned - cost).argmax(1), 3).double(),
    }


def judged(
    log: LoggedDataset,
    targets: dict[str, Tensor],
    rivals: dict[str, str],
    model: Callable,
    fold_count: int,
    level: float,
    draws: int,
    generator: torch.Generator,
) -> dict[str, dict]:
    """Value targets by DR with one cross-fitted model, and their differences to rivals on the same resamples."""
    obs, device = dense(log.obs), log.action.device
    place = torch.arange(len(log), device=device)[:, None]
    fold = folds(place[:, 0], fold_count, generator)
    outcome = torch.stack((log.reward, log.cost), 1)
    each = torch.eye(3, device=device)
    state, parts = generator.get_state(), []
    for k in range(3):  # the models' predictions of each arm, by the same models each time
        generator.set_state(state)
        v, q = cross_fit(model, obs, log.action, outcome, each[k].expand(len(log), 3), place, fold, 1.0, generator)
        parts.append(v.double())
    table = torch.stack(parts, 1)  # [N, 3, kinds]

    def terms(name, kind):
        target = targets[name]
        w = ope.select_actions(target, log.action) / log.propensity
        return ope.dr(w, outcome[:, kind].double(), (target * table[:, :, kind]).sum(1), q[:, kind].double())

    wanted = {(name, key): terms(name, kind) for name in targets for kind, key in enumerate(("profit", "spend"))}
    for name in targets:
        for key, rival in rivals.items():
            wanted[name, key] = ope.Terms(wanted[name, "profit"].plain - wanted[rival, "profit"].plain)
    drawn = intervals.bootstrap(list(wanted.values()), None, draws, generator)
    ends = intervals.central(drawn, level).tolist()
    rows: dict[str, dict] = {
        name: {"mailed": (1 - targets[name][:, 0]).mean().item(), "arms": targets[name].mean(0).tolist()}
        for name in targets
    }
    for ((name, key), made), interval in zip(wanted.items(), ends):
        rows[name][key] = [intervals.estimate(made).item(), *interval]
    return rows


def half(row: list[float]) -> str:
    """Half the width of an interval."""
    return f"{(row[2] - row[1]) / 2:.3f}"

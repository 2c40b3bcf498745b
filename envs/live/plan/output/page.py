"""The page of a plan: one static HTML file with inline SVG, no script and no request to anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from envs.live.plan.arms import RL
from envs.live.plan.output.summary import gain_line, price_of_money, refusals, rule_line
from rlcore.runs.checkpoint import atomic

if TYPE_CHECKING:
    from envs.live.plan.run import Planned

TEMPLATE = Path(__file__).with_name("page.html")
MOST = 12  # rows of a table before the rest is summed up
EXAMPLES = 10
POINTS = 60  # of the curve of spend against price
WIDTH, HEIGHT, MARGIN = 640, 240, 44  # of the curve


class Bar(NamedTuple):
    """A row of a table with a bar."""

    name: str
    customers: int
    spend: float
    face: float
    share: float  #: of the longest bar


def write_page(path: Path, planned: Planned) -> None:
    """Write a plan's page; raise ValueError where jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ValueError(
            f"{path}: pages are written by jinja2, which is not installed: pip install -e '.[live]'"
        ) from error
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    text = template.render(**contents(planned))
    atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def contents(planned: Planned) -> dict[str, Any]:
    """Return what the template shows."""
    plan, columns = planned.plan, planned.plan.columns
    sent = plan.sent
    day = planned.customers.past.first_day()
    pairs = [
        f"{channel} · {offer}" for channel, offer in zip(columns["channel"].take(sent), columns["offer"].take(sent))
    ]
    segments = None if planned.segment is None else planned.segment[sent].tolist()
    return {
        "week": planned.customers.past.week,
        "from_day": "" if day is None else str(day),
        "until": planned.valid_until,
        "customers": len(planned.customers),
        "sent": len(sent),
        "spend": float(columns["spend"].astype(np.float64).sum()),
        "money_total": planned.setting.money,
        "face": float(columns["face"].astype(np.float64).sum()),
        "gain": gain_line(planned),
        "expected_gain": None if plan.gain is None else sum(plan.gain),
        "price": price_of_money(planned),
        "policy": planned.package.version,
        "rule": rule_line(planned),
        "arms": [(name, arm) for name, arm in plan.arms.items() if arm.customers],
        "channels_with_limit": list(plan.channels.items()),
        "offers": bars(columns["offer"].take(sent), planned),
        "channels": bars(columns["channel"].take(sent), planned),
        "pairs": bars(pairs, planned),
        "segment": None if segments is None else f"by {planned.segment_name}",
        "segment_name": planned.segment_name,
        "segments": [] if segments is None else bars([x or "(empty)" for x in segments], planned),
        "curve": curve(planned),
        "examples": examples(planned),
        "refusals": refusals(planned)[:MOST],
        "warnings": plan.warnings,
        "forecast": planned.forecast.weeks,
        "redeemed": float(planned.forecast.redeemed.sum()),
        "forecast_redeemed": float(planned.forecast.forecast.sum()),
    }


def bars(names: list[str], planned: Planned) -> list[Bar]:
    """Sum the sends up by name, [M], dearest first; from the twelfth on they are one row."""
    sent, columns = planned.plan.sent, planned.plan.columns
    distinct, index = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    count = np.bincount(index, minlength=len(distinct))
    spend, face = (np.bincount(index, columns[x][sent].astype(np.float64), len(distinct)) for x in ("spend", "face"))
    order = np.argsort(-spend, kind="stable")
    rows = [(str(distinct[k]), int(count[k]), float(spend[k]), float(face[k])) for k in order]
    if len(rows) > MOST:
        rest = rows[MOST - 1 :]
        rows = rows[: MOST - 1] + [(f"{len(rest):,} more", *(sum(x[k] for x in rest) for k in (1, 2, 3)))]  # type: ignore
    longest = max((row[2] for row in rows), default=0.0)
    return [Bar(*row, share=row[2] / longest if longest > 0 else 0.0) for row in rows]


def examples(planned: Planned) -> list[dict[str, Any]]:
    """Return ten decisions: of the policy one of each kind of reason, of other arms one each, then more of the policy.

    Decisions are taken by their ids, which are as good as lots.
    """
    columns, arm = planned.plan.columns, planned.plan.arm
    order = np.argsort(columns["decision"], kind="stable")
    theirs = order[arm[order] == RL]
    _, first = np.unique(heads(columns["reason"])[theirs], return_index=True)
    chosen = theirs[np.sort(first)][: EXAMPLES - RL].tolist()
    chosen += [int(order[arm[order] == k][0]) for k in range(RL) if (arm == k).any()]
    more = theirs[np.isin(theirs, chosen, invert=True)]
    chosen += more[: EXAMPLES - len(chosen)].tolist()
    rows = np.array(sorted(chosen))
    names = ("customer", "arm", "offer", "channel", "reason", "refused", "rule")
    texts = {name: columns[name].take(rows) for name in names}
    return [
        {name: x[k] for name, x in texts.items()} | {"spend": float(columns["spend"][row])}
        for k, row in enumerate(rows.tolist())
    ]


def heads(reason) -> np.ndarray:
    """Return the part of each reason that has no number, [N]."""
    kinds = [text.partition(" at ")[0].partition(":")[0] for text in reason.texts]
    return np.array(kinds or [""])[reason.index]


def curve(planned: Planned) -> dict[str, Any] | None:
    """Return the curve of the policy's expected spend against the price of money, as an SVG path, and its marks."""
    demand, cleared = planned.plan.demand, planned.plan.cleared
    if not len(demand.log_price):
        return None
    prices = planned.package.prices.numpy().astype(np.float64)
    low, high = np.log(prices[-1]), np.log(prices[0])
    order = np.argsort(-demand.log_price)
    total = np.concatenate(([0.0], demand.spend[order].cumsum()))
    at = np.linspace(low, high, POINTS)
    spend = total[np.searchsorted(-demand.log_price[order], -at, side="right")]
    top = max(spend.max(), planned.plan.arms["rl"].money if not cleared.grid_ended else 0.0, 1e-9)

    def x(log_price: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (log_price - low) / (high - low), 1)

    def y(money: float) -> float:
        return round(HEIGHT - MARGIN - (HEIGHT - 1.6 * MARGIN) * min(money / top, 1.0), 1)

    points = " ".join(f"{x(a)},{y(s)}" for a, s in zip(at.tolist(), spend.tolist()))
    price = cleared.price
    ticks = [p for p in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if prices[-1] <= p <= prices[0]]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": MARGIN,
        "right": WIDTH - MARGIN,
        "bottom": HEIGHT - MARGIN,
        "points": points,
        "price": x(min(max(np.log(price), low), high)) if 0 < price < np.inf else None,
        "top": float(top),
        "price_name": price_of_money(planned),
        "money": y(planned.plan.arms["rl"].money),
        "money_value": planned.plan.arms["rl"].money,
        "ticks": [(x(np.log(p)), f"{p:g}") for p in ticks],
    }

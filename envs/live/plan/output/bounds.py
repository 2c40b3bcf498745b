"""Say what a plan sends, and stop where that is out of bounds.

    python -m envs.live.plan.output.bounds plan/week=48.parquet messages=170-700 spend=60-200 bau=140-550 rl=30-130

A bound is NAME=LEAST-MOST, of which one number may be missing. Names: `messages`, `spend` (expected), or an arm, whose
messages are bounded. Exit code 0: within all bounds; 2: bad input; 4: out of bounds.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from envs.offers.logs.customer_weeks import ARMS

NUMBER = r"\d+(?:\.\d+)?"
BOUND = re.compile(rf"({'|'.join(('messages', 'spend', *ARMS))})=({NUMBER})?-({NUMBER})?")


def main(arguments: list[str]) -> int:
    """Print what a plan sends, and each bound that it breaks; return the exit code."""
    try:
        path, *bounds = arguments
        figures = figures_of(path)
        broken = list(broken_bounds(figures, bounds))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arms = ", ".join(f"{arm} {figures[arm]}" for arm in ARMS if arm in figures)
    print(f"{figures['messages']} messages ({arms}), expected spend {figures['spend']}")
    for line in broken:
        print(f"{path}: {line}: not handed over", file=sys.stderr)
    return 4 if broken else 0


def figures_of(path: str) -> dict[str, float]:
    """Return a plan's messages, those of each arm that may send some, and its expected spend.

    Raises ValueError where the file is no plan, or its spend is no number.
    """
    try:
        plan = pq.read_table(path, columns=["arm", "offer", "spend"]).to_pydict()
        arms, offers, spends = plan["arm"], plan["offer"], plan["spend"]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path}: expected a plan that scripts/plan.py wrote") from error
    wrong = [row for row, x in enumerate(spends) if x is None or not math.isfinite(x)]
    if wrong:
        raise ValueError(f"{path}: row {wrong[0]}, column 'spend': expected a number, got {spends[wrong[0]]}")
    sent = [arm for arm, offer in zip(arms, offers) if offer]
    figures = {"messages": len(sent), "spend": round(sum(spends), 2)}
    return {**figures, **{arm: sent.count(arm) for arm in ARMS if arm in sent or (arm in arms and arm != "holdout")}}


def broken_bounds(figures: dict[str, float], bounds: list[str]) -> Iterator[str]:
    """Yield what is wrong with each figure that is out of its bound; an arm without customers sends nothing.

    Raises ValueError where a bound can't be read.
    """
    for bound in bounds:
        found = BOUND.fullmatch(bound)
        if not found or not (found[2] or found[3]):
            names = ", ".join(("messages", "spend", *ARMS))
            raise ValueError(f"bounds: expected NAME=LEAST-MOST, such as rl=30-130, of {names}; got '{bound}'")
        name, least, most = found.groups()
        if least and most and float(least) > float(most):
            raise ValueError(f"bounds: expected the least first, got '{bound}'")
        figure = figures.get(name, 0)
        if figure < float(least or 0) or figure > float(most or math.inf):
            what = f"expected spend {figure}" if name == "spend" else f"{figure} messages"
            of = f" of the arm {name}" if name in ARMS else ""
            yield f"{what}{of}, out of the bounds {least or 0} to {most or 'any'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

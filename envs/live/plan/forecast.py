"""The forecast of redemptions, corrected by what past plans redeemed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.live.plan.arms import ARMS, RL
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.output.plan_file import plans_in, read_facts
from envs.live.plan.reasons import pair_name
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.world.catalogue import Catalogue
from rlcore.offline.file_columns import arrow
from rlcore.offline.parquet_files import read_parquet

# a log that has none of so many forecast redemptions was not told of them: by chance that has odds of exp(−15); of
# fewer, twice or half as many as forecast is chance too
UNTOLD = 15.0
USUAL = (0.5, 2.0)  # redemptions / forecast; beyond it the data is likelier to be wrong than the policy


class Forecast(NamedTuple):
    """Factors of the forecast redemptions by pair, and what they come from, float64 [P] each."""

    factor: np.ndarray
    redeemed: np.ndarray
    forecast: np.ndarray
    weeks: int  #: past plans
    warnings: tuple[str, ...] = ()


class Tally(NamedTuple):
    """What was redeemed of each pair, and what was forecast, both float64 [P]."""

    redeemed: np.ndarray
    forecast: np.ndarray
    catalogue: Catalogue

    @classmethod
    def none(cls, catalogue: Catalogue) -> Tally:
        """Return a tally without a send."""
        pairs = catalogue.action_codec.num_actions
        return cls(np.zeros(pairs), np.zeros(pairs), catalogue)

    def add(self, action: np.ndarray, spend: np.ndarray, factor: np.ndarray, redeemed: np.ndarray) -> None:
        """Add M decisions: their flat actions, expected spends under the factors [P] of then, and who redeemed."""
        catalogue, pairs = self.catalogue, len(self.forecast)
        offer, channel = (x.numpy() for x in catalogue.action_codec.decode(torch.from_numpy(action)))
        face, message = catalogue.value.numpy()[offer], catalogue.cost.numpy()[channel]
        chance = np.where(face > 0, (spend - message) / np.maximum(face, 1e-12), 0.0) / factor[action]
        self.forecast[:] += np.bincount(action, chance, pairs)
        self.redeemed[:] += np.bincount(action, redeemed * (face > 0), pairs)  # of face value 0 none is forecast

    def factor(self, redemptions: float | None, common: float) -> np.ndarray:
        """Return (redeemed + w·f) / (forecast + w), [P], where f = (Σ redeemed + v) / (Σ forecast + v).

        w is `redemptions` and v is `common`: a pair's factor stays near that of all pairs until the pair has been
        redeemed w times, and the factor of all pairs near 1 until v redemptions. These are the means of gamma priors
        of variance f/w and 1/v, if redemptions are Poisson. 1 where `redemptions` is None.
        """
        if redemptions is None:
            return np.ones(len(self.forecast))
        return (self.redeemed + redemptions * self.of_all(common)) / (self.forecast + redemptions)

    def of_all(self, common: float) -> float:
        """Return (Σ redeemed + v) / (Σ forecast + v), where v is `common`."""
        return float((self.redeemed.sum() + common) / (self.forecast.sum() + common))

    def unusual(self) -> list[str]:
        """Warn where redemptions are less than half or more than twice the forecast, and one of both is not a few."""
        redeemed, forecast = float(self.redeemed.sum()), float(self.forecast.sum())
        if max(redeemed, forecast) <= UNTOLD or USUAL[0] * forecast <= redeemed <= USUAL[1] * forecast:
            return []
        ratio = redeemed / max(forecast, 1e-12)
        return [
            f"past plans were redeemed {ratio:.2g} times as often as forecast ({redeemed:,.0f} of "
            f"{forecast:,.0f}), which corrects the forecast: see that the log has all redemptions of these offers and "
            "no others (forecast.redemptions=null: no correction)"
        ]

    def plus(self, other: Tally) -> Tally:
        """Return the sum of two tallies."""
        return self._replace(redeemed=self.redeemed + other.redeemed, forecast=self.forecast + other.forecast)


def corrections(
    folder: Path,
    past: PastWeeks,
    catalogue: Catalogue,
    version: str,
    *,
    redemptions: float | None,
    common: float,
    reported_after: int,
) -> Forecast:
    """Compare, by offer and channel, the redemptions of past plans (as the log has them) with the forecast ones.

    A plan counts once its offers have ended and `reported_after` weeks have passed, until which redemptions are still
    reported. A plan or pair of whose redemptions the log was not told (`UNTOLD`) is left out, with a warning, and so
    are all plans together. Plans of another package than that of `version` say nothing about its forecasts, and are
    left out. `Tally.factor` reads `redemptions` and `common`. Forecasts are those of the policy, before the corrections
    of their time. A send counts where the log has the planned offer through the planned channel. Only sends of the arm
    `rl` count: the policy sends most where the forecast is too low for what a send is worth, so its sends cost more
    than those of other arms.
    """
    tally = Tally.none(catalogue)
    weeks, others, warnings = 0, 0, []
    if redemptions is None or past.log is None:
        return Forecast(tally.factor(None, common), tally.redeemed, tally.forecast, 0)
    for path in plans_in(folder):
        facts = read_facts(path)
        is_over = facts["week"] + facts["valid_weeks"] + reported_after <= past.week
        is_own = facts["policy"] == version and len(facts["factors"]) == len(tally.forecast)
        others += is_over and not is_own
        if not is_over or not is_own:
            continue
        of_week = _tally(path, facts, past.log, catalogue)
        forecast = of_week.forecast.sum()
        if forecast > UNTOLD and not of_week.redeemed.any():
            warnings.append(f"the log has no redemption of week {facts['week']}'s plan, which forecast {forecast:,.0f}")
            continue
        weeks += 1
        tally = tally.plus(of_week)
    forecast = tally.forecast.sum()
    if forecast > UNTOLD and not tally.redeemed.any():
        warnings.append(f"the log has no redemption of {weeks:,} past plans, which forecast {forecast:,.0f}")
        tally, weeks = Tally.none(catalogue), 0
    for k in np.flatnonzero((tally.forecast > UNTOLD) & (tally.redeemed == 0)).tolist():
        name = pair_name(catalogue, k)
        warnings.append(f"the log has no redemption of {name}, of which past plans forecast {tally.forecast[k]:,.0f}")
        tally.forecast[k] = 0.0
    warnings = [f"{x}: they do not correct the forecast; see that the export of sends has them" for x in warnings]
    if others and not weeks:
        warnings.append(f"{others:,} past plans are of other packages than this one: none corrects its forecast")
    warnings += tally.unusual()
    return Forecast(tally.factor(redemptions, common), tally.redeemed, tally.forecast, weeks, tuple(warnings))


def _tally(path: Path, facts: dict[str, Any], log: CustomerWeeks, catalogue: Catalogue) -> Tally:
    """Tally the sends of a plan's arm rl that the log has."""
    week = facts["week"]
    action, row, spend = _sends(path, {name: k for k, name in enumerate(log.ids)}, catalogue)
    in_log = (torch.from_numpy(x[week].astype(np.int64)) for x in (log.offer, log.channel))
    log_action = catalogue.action_codec.encode(*in_log).numpy()
    sent = (row >= 0) & (log_action[np.maximum(row, 0)] == action)
    tally = Tally.none(catalogue)
    tally.add(action[sent], spend[sent], np.array(facts["factors"]), log.redeemed[week][row[sent]])
    return tally


def _sends(path: Path, place: dict[str, int], catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the actions, rows in the log (−1: none) and expected spends of the sends of a plan's arm rl, [M] each."""
    pa = arrow()
    table = read_parquet(path, columns=["customer", "arm", "offer", "channel", "spend"])
    is_sent = pa.compute.not_equal(table["offer"].cast(pa.string()), "")
    table = table.filter(pa.compute.and_(is_sent, pa.compute.equal(table["arm"].cast(pa.string()), ARMS[RL])))
    offer = [catalogue.offers.index(x) if x in catalogue.offers else 0 for x in table["offer"].to_pylist()]
    channel = [catalogue.channels.index(x) if x in catalogue.channels else 0 for x in table["channel"].to_pylist()]
    row = np.array([place.get(x, -1) for x in table["customer"].to_pylist()], dtype=np.int64)
    action = catalogue.action_codec.encode(torch.tensor(offer).long(), torch.tensor(channel).long())
    return action.numpy(), row, table["spend"].to_numpy().astype(np.float64)

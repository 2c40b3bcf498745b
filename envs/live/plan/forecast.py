"""The forecast of redemptions, corrected by what past plans redeemed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from envs.live.plan.arms import ARMS, RL
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.output.plan_file import plans_in, read_facts
from envs.offers.world.catalogue import Catalogue
from rlcore.offline.file_columns import arrow
from rlcore.offline.parquet_files import read_parquet


class Forecast(NamedTuple):
    """Factors of the forecast redemptions by pair, and what they come from, float64 [P] each."""

    factor: np.ndarray
    redeemed: np.ndarray
    forecast: np.ndarray
    weeks: int  #: past plans


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
        self.redeemed[:] += np.bincount(action, redeemed, pairs)

    def factor(self, redemptions: float | None, common: float) -> np.ndarray:
        """Return (redeemed + w·f) / (forecast + w), [P], where f = (Σ redeemed + v) / (Σ forecast + v).

        w is `redemptions` and v is `common`: a pair's factor stays near that of all pairs until the pair has been
        redeemed w times, and the factor of all pairs near 1 until v redemptions. These are the means of gamma priors
        of variance f/w and 1/v, if redemptions are Poisson. 1 where `redemptions` is None.
        """
        if redemptions is None:
            return np.ones(len(self.forecast))
        of_all = (self.redeemed.sum() + common) / (self.forecast.sum() + common)
        return (self.redeemed + redemptions * of_all) / (self.forecast + redemptions)


def corrections(
    folder: Path, past: PastWeeks, catalogue: Catalogue, version: str, *, redemptions: float | None, common: float
) -> Forecast:
    """Compare, by offer and channel, the redemptions of past plans (as the log has them) with the forecast ones.

    Plans of another package than that of `version` say nothing about its forecasts, and are left out. `Tally.factor`
    reads `redemptions` and `common`. Forecasts are those of the policy, before the corrections of their time. A send
    counts where the log has the planned offer through the planned channel. Only sends of the arm `rl` count: the policy
    sends most where the forecast is too low for what a send is worth, so its sends cost more than those of other arms.
    """
    tally = Tally.none(catalogue)
    weeks = 0
    if redemptions is None or past.log is None:
        return Forecast(tally.factor(None, common), tally.redeemed, tally.forecast, 0)
    place = {name: k for k, name in enumerate(past.log.ids)}
    for path in plans_in(folder):
        facts = read_facts(path)
        week = facts["week"]
        is_over = week + facts["valid_weeks"] <= past.week  # until then redemptions are still to come
        is_own = facts["policy"] == version and len(facts["factors"]) == len(tally.forecast)
        if not is_over or not is_own:
            continue
        weeks += 1
        action, row, spend = _sends(path, place, catalogue)
        in_log = (torch.from_numpy(x[week].astype(np.int64)) for x in (past.log.offer, past.log.channel))
        log_action = catalogue.action_codec.encode(*in_log).numpy()
        sent = (row >= 0) & (log_action[np.maximum(row, 0)] == action)
        action, row, spend = action[sent], row[sent], spend[sent]
        tally.add(action, spend, np.array(facts["factors"]), past.log.redeemed[week][row])
    return Forecast(tally.factor(redemptions, common), tally.redeemed, tally.forecast, weeks)


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

"""Whether the equations explain a log: predictions against what happened, by groups of decisions.

Where nobody saw the states, each week is predicted from the weeks before it, under given θ
(envs/offers/world/filtering.py), so that no prediction has seen its own outcome.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.checks.residual_tests import Groups, significant_groups
from envs.offers.twin.hidden_states.mixture_filter import seen_weeks
from envs.offers.twin.predictions import OutcomePrediction, PanelPredictions, mean_probabilities
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import Customers, World
from envs.offers.world.filtering import CHUNK, Belief, Predicted, filter_week, predict_week
from envs.offers.world.history import SeenWeek

SEGMENTS = ("lowest", "middle", "highest")  # thirds of customers by a feature
RECENT = 12  # weeks whose purchases and redemptions are counted
SENT = ("nothing sent", "contacted")


class Decisions(NamedTuple):
    """What was sent to customers and what came of it, [T, N] each."""

    seen: SeenWeek
    week: Tensor  # of the season, from 0
    time: Tensor  # week of the log, from 0

    @classmethod
    def of_season(cls, seen: list[SeenWeek]) -> Decisions:
        """Return the decisions of one season."""
        season = SeenWeek(*(torch.stack(x) for x in zip(*seen)))
        week = torch.arange(len(seen), device=season.offer.device)[:, None].expand_as(season.offer)
        return cls(season, week, week)

    @classmethod
    def of_panel(cls, panel: Panel) -> Decisions:
        """Return the decisions of a log that is laid out by customer and week."""
        assert panel.time is not None  # to_panel and to_life_panel lay it out
        return cls(cls.of_season(seen_weeks(panel)).seen, panel.week, panel.time)


class Decile(NamedTuple):
    """A tenth of the predictions, from the lowest to the highest."""

    predicted: float  # mean probability
    observed: float  # share that happened
    z: float  # excess of what happened, in standard errors


@torch.no_grad()
def predict_season(
    customers: Customers, world: World, start: Tensor, seen: list[SeenWeek]
) -> dict[str, OutcomePrediction]:
    """Predict trips, redemptions and opt-outs of each week of a season; `start` [14] are the marginals of its start."""
    parts = []
    for first in range(0, len(customers), CHUNK):
        rows = slice(first, first + CHUNK)
        some = customers[rows]
        marginals = start.to(some.alpha)[:, None].expand(-1, len(some))
        belief = Belief.from_marginals(marginals, torch.zeros_like(seen[0].bought[rows]))
        weeks = []
        for t, week in enumerate(x.take(rows) for x in seen):
            weeks.append(torch.stack(predict_week(some, world, t, belief, week.offer, week.channel)))
            belief, _ = filter_week(some, world, t, belief, week)
        parts.append(torch.stack(weeks, 1))
    predicted, season = Predicted(*torch.cat(parts, 2)), Decisions.of_season(seen).seen
    contacted = season.offer > 0
    return {
        "trips": OutcomePrediction(predicted.bought, season.bought, torch.ones_like(contacted)),
        "redeemed": OutcomePrediction(predicted.redeemed, season.redeemed, contacted),
        "opt_out": OutcomePrediction(predicted.opted_out, season.opted_out, contacted),
    }


def deciles(outcomes: OutcomePrediction, weeks: slice) -> list[Decile]:
    """Compare the predictions of some weeks with what happened, by tenths of the predictions.

    Given the weeks before, outcomes of different weeks and customers are uncorrelated, so that variances add up.
    """
    probability, happened, known = (x[weeks] for x in outcomes)
    p, y = probability[known].double(), happened[known].double()
    found = []
    for rows in p.argsort().chunk(10):
        q = p[rows]
        error = (y[rows] - q).sum() / (q * (1 - q)).sum().sqrt().clamp_min(1e-9)
        found.append(Decile(q.mean().item(), y[rows].mean().item(), error.item()))
    return found


# ── where the equations can't explain the log ───────────────────────────────────────────────────────────────────────
def in_recent_weeks(happened: Tensor, weeks: int) -> Tensor:
    """Count, for each week, the events bool [T, N] of so many weeks before it, int64 [T, N]."""
    so_far = happened.long().cumsum(0)
    before = torch.zeros_like(so_far)
    before[1:] = so_far[:-1]
    long_before = torch.zeros_like(so_far)
    long_before[weeks:] = before[:-weeks]
    return before - long_before


class Segments(NamedTuple):
    """What is known of N customers, by which they are grouped."""

    features: Tensor  # [F, N]: thirds by each are groups
    names: list[str]
    held_out: Tensor  # customers to whom nothing was fitted: the thirds are of these, bool [N]
    theta: Tensor  # estimated parameters, [K, N]: each two of them make groups
    parameters: list[str]


def pairs(decisions: Decisions, catalogue: Catalogue) -> Groups:
    """Group decisions by the pair of offer and channel that was sent."""
    season, codec = decisions.seen, catalogue.action_codec
    names = [
        "nothing" if offer == 0 else f"{catalogue.offers[offer]} by {catalogue.channels[channel]}"
        for offer in range(codec.num_offers)
        for channel in range(codec.num_channels)
    ]
    return Groups(codec.encode(season.offer, season.channel * (season.offer > 0)), names)


def groups(decisions: Decisions, catalogue: Catalogue, segments: Segments | None = None) -> dict[str, Groups]:
    """Group decisions by what was known before their outcomes, in several ways.

    Customers are grouped by `segments` too, with decisions with and without a contact apart.
    """
    season = decisions.seen
    sent = (season.offer > 0).long()
    weeks, weeks_of_log = (int(x.amax()) + 1 for x in (decisions.week, decisions.time))
    found = {
        "pair": pairs(decisions, catalogue),
        "week": Groups(decisions.week, [f"week {t + 1}" for t in range(weeks)]),
        "contacts": Groups(in_recent_weeks(sent > 0, 3), [f"{k} contacts in 3 weeks" for k in range(4)]),
    }
    for kind, happened in (("purchases", season.bought), ("redemptions", season.redeemed)):
        labels = [f"{k} {kind} in the {RECENT} weeks before" for k in range(RECENT + 1)]
        found[kind] = Groups(in_recent_weeks(happened, RECENT), labels)
    if weeks_of_log > weeks:
        found["week of the log"] = Groups(decisions.time, [f"week {t + 1} of the log" for t in range(weeks_of_log)])
    if segments is not None:
        sent = sent.to(torch.int8)  # of many groups: eight times as small
        found |= thirds(segments, sent) | sides(segments, sent)
    return found


def thirds(segments: Segments, sent: Tensor) -> dict[str, Groups]:
    """Group decisions by customers' thirds of each feature; `sent`, int8 [T, N], is 1 where there was a contact."""
    found = {}
    for feature, name in zip(segments.features, segments.names):
        limits = torch.quantile(feature.float(), feature.new_tensor([1 / 3, 2 / 3]))
        third = torch.bucketize(feature.contiguous(), limits).to(sent)
        labels = [f"{third} third of {name}, {what}" for third in SEGMENTS for what in SENT]
        # a key that no other kind of group has, whatever the feature is called
        found[f"thirds of {name}"] = Groups(torch.where(segments.held_out, 2 * third + sent, -1), labels)
    return found


def sides(segments: Segments, sent: Tensor) -> dict[str, Groups]:
    """Group decisions by whether two estimated parameters of the customer are on the same side of their medians.

    Such groups show segments that a linear G can't follow: customers in whom both parameters are high, or both low,
    respond otherwise. Errors in the effect of a single parameter cancel in these groups where estimates are symmetric,
    so that a penalty on slopes hardly shows. `sent`, int8 [T, N], is 1 where there was a contact.
    """
    high = segments.theta > segments.theta.median(1, keepdim=True).values
    found = {}
    for (i, a), (j, b) in combinations(enumerate(segments.parameters), 2):
        opposite = (high[i] != high[j]).to(sent)
        labels = [
            f"{a} and {b} on {where} of their medians, {what}"
            for where in ("the same side", "opposite sides")
            for what in SENT
        ]
        found[f"sides of {a} and {b}"] = Groups(2 * opposite + sent, labels)
    return found


def misfits(
    predicted: dict[str, OutcomePrediction],
    decisions: Decisions,
    catalogue: Catalogue,
    level: float,
    segments: Segments | None = None,
) -> list[str]:
    """Name the groups of decisions whose outcomes the equations can't explain (`significant_groups`)."""
    return significant_groups(predicted, groups(decisions, catalogue, segments), decisions.time, level)


def trip_misfits(
    members: list[PanelPredictions], panel: Panel, judging: Tensor, catalogue: Catalogue, level: float
) -> list[str]:
    """Warn of pairs of offer and channel whose trips a twin's members can't explain (`significant_groups`).

    The trips are those of the customers `judging`, bool [N].
    """
    trips = mean_probabilities(members)["trips"]
    reachable = trips._replace(known=trips.known & panel.subscribed & judging)
    decisions = Decisions.of_panel(panel)
    named = significant_groups({"trips": reachable}, {"pair": pairs(decisions, catalogue)}, decisions.time, level)
    return unexplained(named)


def unexplained(named: list[str]) -> list[str]:
    """Return the warning of groups of decisions that are named, none without any."""
    reason = "the world's equations can't explain these outcomes, or the sender knew more than the log has"
    return [f"{reason}: {'; '.join(named)}"] if named else []

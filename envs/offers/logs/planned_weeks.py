"""The decisions of weekly plans beside what a log says was sent: their propensities, where both agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.offers.logs.customer_weeks import DRAWN, CustomerWeeks, Rows, put_silence


@dataclass(frozen=True)
class PlannedWeek:
    """What a plan decided for M customers in a week."""

    source: str  #: for messages
    week: int  #: of the log, from 0
    customers: list[str]  #: ids, [M]
    offer: np.ndarray  #: 0 for nothing, int64 [M]
    channel: np.ndarray  #: int64 [M]
    propensity: np.ndarray  #: of the decision, given the customer's arm, float64 [M]
    arm: np.ndarray  #: which rule decided, an index into ARMS, int64 [M]


def put_planned(log: CustomerWeeks, planned: PlannedWeek) -> str:
    """Give the decisions of a planned week their propensities; return a sentence that counts planned and made sends.

    The log says what was sent. Where that is not what the plan decided (a planned message that was not sent, a message
    that the plan lacks, a customer whom the plan lacks), nobody knows the probability of the decision: its propensity
    becomes NaN.

    A plan's propensities are those given the customer's arm. The arms that draw lots (`random`, `rl`) each have a
    random part of the customers, so that their decisions, weighted by these propensities, value a policy on all. In an
    arm that draws none (`holdout`, `bau`) every other action has probability 0, and no weight could make up for it.
    The probability of its decision before the customer's arm was drawn is unknown, because no plan decides for a
    customer under several arms: the propensity becomes NaN too. Raises ValueError where the log knows none of the
    plan's customers.
    """
    place = {name: k for k, name in enumerate(log.ids)}
    row = np.fromiter((place.get(name, -1) for name in planned.customers), np.int64, len(planned.customers))
    known = row >= 0
    if not known.any():
        raise ValueError(f"{planned.source}: expected a plan of the log's customers, got ids that the log lacks")
    week = planned.week
    offer = np.full(len(log.ids), -1)
    arm = np.full(len(log.ids), -1)
    channel, propensity = np.zeros_like(offer), np.full(len(log.ids), np.nan)
    offer[row[known]] = planned.offer[known]
    channel[row[known]] = planned.channel[known]
    arm[row[known]] = planned.arm[known]
    propensity[row[known]] = planned.propensity[known]

    sent = log.offer[week] > 0
    is_as_planned = (log.offer[week] == offer) & (~sent | (log.channel[week] == channel)) & log.is_present(week)
    is_drawn = np.isin(arm, DRAWN)
    log.propensity[week] = np.where(is_as_planned & is_drawn, propensity, np.nan)
    log.arm[week] = np.where(log.is_present(week), arm, -1)
    sends = int((planned.offer > 0).sum())
    made = int((sent & is_as_planned).sum())
    other = int((sent & ~is_as_planned).sum())
    unknown = int((log.is_present(week) & ~is_as_planned).sum())
    undrawn = int((is_as_planned & ~is_drawn).sum())
    return (
        f"week {week}: {made:,} of {sends:,} planned sends were made, {sends - made:,} were not; {other:,} sends were "
        f"not planned; {unknown:,} decisions are not the plan's and have no propensity, nor have {undrawn:,} of "
        "the arms holdout and bau, which draw no lot"
    )


def put_unplanned(log: CustomerWeeks, week: int, was_silent: bool, listed: Rows) -> str:
    """Say what is known of a week after the first planned one that has no plan; return a sentence for a warning.

    Where nothing was sent to anybody, no decision was drawn: the propensity of nothing is 1. Where something was sent,
    nobody knows who could have got it: decisions without a propensity keep none. Where an older log had no send of the
    week (`was_silent`), and now it has one, nothing is certain no more, but for what rows of the file, `listed`, say.
    """
    if (log.offer[week] > 0).any():
        if was_silent:
            log.propensity[week, (log.offer[week] == 0) & (log.propensity[week] == 1)] = np.nan
            put_silence(log, listed.take(np.flatnonzero(listed.week == week)))
        return f"week {week} has sends and no plan: its decisions have only the propensities that the sends' file gives"
    log.propensity[week, log.is_present(week) & np.isnan(log.propensity[week])] = 1.0
    return f"week {week} has no plan and no send: the propensity of nothing is 1, where the sends' file gives none"

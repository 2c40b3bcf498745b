"""The columns of a plan's file, out of decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from envs.live.plan import reasons
from envs.live.plan.arms import ARMS, BAU, HOLDOUT, RANDOM, RL
from envs.live.plan.deciding import Customers, PolicyPackage
from envs.live.plan.draws import Decisions
from envs.live.plan.output.plan_file import Names, Texts, decision_ids

if TYPE_CHECKING:
    from envs.live.plan.arm_plans import PlanSetting


def plan_columns(
    package: PolicyPackage,
    customers: Customers,
    setting: PlanSetting,
    arm: np.ndarray,
    decisions: Decisions,
    spend: Tensor,
    price: float,
    refused: reasons.Refused,
) -> dict[str, Any]:
    """Return the columns by name, numpy arrays [N] or Texts.

    arm [N]; spend [N], expected.
    """
    n, week = len(customers), customers.past.week
    catalogue = package.catalogue
    names = [reasons.pair_name(catalogue, k) for k in range(catalogue.action_codec.num_actions)]
    following = decisions.next_action.numpy()
    offer, channel = catalogue.action_codec.decode(decisions.action)
    next_offer, next_channel = catalogue.action_codec.decode(decisions.next_action)
    offers = ["" if k == 0 else name for k, name in enumerate(catalogue.offers)]
    channels = [""] + list(catalogue.channels)
    face = catalogue.value[offer] + catalogue.cost[channel] * (offer > 0)
    policies = {HOLDOUT: "none", RANDOM: "uniform", BAU: setting.shop_rule.name, RL: package.version}
    nan = np.full(n, np.nan, dtype=np.float32)
    index, texts = explained(package, customers, arm, decisions, price, refused)

    def through(chosen: Tensor, of: Tensor) -> Texts:
        return Texts(np.where(chosen.numpy() > 0, of.numpy() + 1, 0), channels)

    return {
        "decision": decision_ids(customers.ids, week),
        "customer": Names(customers.ids),
        "season": np.full(n, week // package.weeks, dtype=np.int32),
        "week": np.full(n, week % package.weeks, dtype=np.int32),
        "arm": Texts(arm, ARMS),
        "policy": Texts(arm, [policies[k] for k in range(len(ARMS))]),
        "offer": Texts(offer.numpy(), offers),
        "channel": through(offer, channel),
        "propensity": decisions.propensity.numpy(),
        "price": np.where(arm == RL, np.float32(price), np.float32(np.nan)),
        "own_price": decisions.own_price.numpy(),
        "spend": spend.numpy(),
        "face": face.float().numpy(),
        "now": nan,
        "later": nan,
        "next_offer": Texts(next_offer.numpy(), offers),
        "next_channel": through(next_offer, next_channel),
        "next_price": np.where(following > 0, decisions.next_price.numpy(), np.float32(np.nan)),
        "refused": Texts(refused.action, names),
        "rule": Texts(np.where(refused.action > 0, refused.rule, 0), refused.names),
        "reason": Texts(index, texts),
    }


def add_gains(columns: dict[str, Any], now: np.ndarray, later: np.ndarray) -> None:
    """Fill what sends bring by a twin, [N] each, and say so in the reasons of what is sent."""
    columns["now"], columns["later"] = now, later
    sent, reason = np.flatnonzero(columns["offer"].index), columns["reason"]
    told = [
        f"{text}; by the twin {reasons.signed(a)} this week and {reasons.signed(b)} later"
        for text, a, b in zip(reason.take(sent), now[sent].tolist(), later[sent].tolist())
    ]
    distinct, place = np.unique(np.array(told, dtype=object), return_inverse=True)
    index = reason.index.copy()
    index[sent] = len(reason.texts) + place.reshape(-1)
    columns["reason"] = Texts(index, [*reason.texts, *distinct.tolist()])


def explained(
    package: PolicyPackage,
    customers: Customers,
    arm: np.ndarray,
    decisions: Decisions,
    price: float,
    refused: reasons.Refused,
) -> tuple[np.ndarray, list[str]]:
    """Return the index [N] of each decision's sentence, and the sentences."""
    eligible = customers.eligible.numpy()
    action, following = decisions.action.numpy(), decisions.next_action.numpy()
    own, next_price = decisions.own_price.numpy(), decisions.next_price.numpy()
    general = barring(customers)
    barred = np.where(general > 0, general, refused.rule)
    kind = np.where(
        action > 0,
        np.where((own >= price) & ~(next_price > price), reasons.BOUGHT, reasons.BOUGHT_BY_LOT),
        np.where(
            following > 0,
            np.where(next_price > price, reasons.WAITS_BY_LOT, reasons.WAITS),
            reasons.NO_STEP,
        ),
    )
    kind = np.where(decisions.cut.numpy(), reasons.CUT, kind)
    is_barred = ~eligible | (refused.by_capacity & (action == 0))
    kind = np.where(is_barred, reasons.BARRED, kind)
    zero = np.zeros(len(arm))
    is_bought, waits = action > 0, (action == 0) & (following > 0) & ~is_barred
    parts = (
        np.where(is_bought, reasons.rounded(own), zero),
        np.where(waits, reasons.rounded(next_price), zero),
        np.where(waits, following, zero),
        np.where(is_barred, barred, zero),
    )
    lowest = float(package.prices[-1])
    of_policy = reasons.why_of_policy(package.catalogue, price, lowest, refused.names)

    def say(kind: int, own: float, next_price: float, next_action: float, rule: float, arm: float) -> str:
        if arm == HOLDOUT:
            return "holdout"
        if arm == RL or kind in (reasons.BARRED, reasons.CUT):
            return of_policy(kind, own, next_price, next_action, rule)
        who = "drawn by chance" if arm == RANDOM else "the shop's own rule"
        return who if kind in (reasons.BOUGHT, reasons.BOUGHT_BY_LOT) else f"{who}: nothing"

    kind = np.where(arm == HOLDOUT, reasons.NOTHING, kind)
    told = [np.where(arm == HOLDOUT, 0.0, x) for x in parts]
    return reasons.sentences(kind, (*told, arm), say)


def barring(customers: Customers) -> np.ndarray:
    """Return the rule that bars each customer from all contacts, an index into RuleNames, 0 where none does alone."""
    policy = customers.contact_policy
    nobody = torch.zeros(len(customers), dtype=torch.bool)
    bars = [nobody, ~customers.subscribed]
    bars += [x.excluded if x.offer is None and x.channel is None else nobody for x in policy.exclusions]
    bars += [customers.options.caps_left[:, k] <= 0 for k in range(len(policy.caps))]
    return torch.stack(bars).to(torch.uint8).argmax(0).numpy()

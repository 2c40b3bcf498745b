"""The reason of each decision, one plain sentence, and the rule that refused what would have been better."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions, ContactPolicy
from envs.offers.world.catalogue import Catalogue

DIGITS = 3  # significant digits of prices in sentences
NOTHING, BOUGHT, BOUGHT_BY_LOT, WAITS, WAITS_BY_LOT, NO_STEP, BARRED, CUT = range(8)


def pair_name(catalogue: Catalogue, action: int) -> str:
    """Name a flat action as channel and offer; empty for nothing."""
    offer, channel = catalogue.action_codec.decode(action)
    return f"{catalogue.channels[channel]} {catalogue.offers[offer]}" if offer else ""


def number(x: float) -> str:
    """Show a price to three significant digits; from 1,000 on, to whole units."""
    return f"{x:.{DIGITS}g}" if x < 10**DIGITS else f"{x:,.0f}"


def signed(x: float) -> str:
    """Show money with its sign, to the hundredth."""
    return f"{x:+.2f}"


class Refused(NamedTuple):
    """What N customers would be sent without the rule that refuses it."""

    action: np.ndarray  #: flat, 0 where no rule refuses anything, int64 [N]
    rule: np.ndarray  #: index into names, int64 [N]
    names: list[str]
    by_capacity: np.ndarray  #: whether the rule is that of a channel which carries no more, bool [N]


class RuleNames:
    """Names of the rules that can refuse a pair: index 0 is none."""

    def __init__(self, policy: ContactPolicy):
        self.names = ["", "not subscribed", *(x.reason for x in policy.exclusions)]
        self.names += [cap.reason for cap in policy.caps]

    def refusing(
        self, policy: ContactPolicy, options: ContactOptions, subscribed: Tensor, action: Tensor
    ) -> np.ndarray:
        """Return the index of the first rule that refuses each customer's action, [N], 0 where none does."""
        offer, channel = policy.catalogue.action_codec.decode(action)
        refused = [torch.zeros_like(subscribed), ~subscribed]
        for x in policy.exclusions:
            of_offer = torch.ones_like(subscribed) if x.offer is None else offer == x.offer
            of_channel = torch.ones_like(subscribed) if x.channel is None else channel == x.channel
            refused.append(x.excluded & of_offer & of_channel)
        refused += [options.caps_left[:, k] <= 0 for k in range(len(policy.caps))]
        table = torch.stack(refused) & (action > 0)
        return table.to(torch.uint8).argmax(0).numpy()


def rounded(price: np.ndarray) -> np.ndarray:
    """Return prices with three digits, so that many customers share a sentence, which is then stored once."""
    known = np.where(np.isfinite(price) & (price > 0), price, 1.0).astype(np.float64)
    exponent = DIGITS - 1 - np.floor(np.log10(known))
    scale = 10.0**exponent
    return np.where(np.isfinite(price), np.rint(known * scale) / scale, price)


def sentences(kind: np.ndarray, parts: tuple[np.ndarray, ...], say: Callable[..., str]) -> tuple[np.ndarray, list[str]]:
    """Return indices [N] into sentences, and the sentences, each distinct combination being said once.

    `parts` are numbers [N] that a sentence is made of; `say` gets the kind and the parts.
    """
    keys = np.stack([kind.astype(np.float64), *(np.nan_to_num(x.astype(np.float64), nan=-1.0) for x in parts)], 1)
    # one column of 32 bytes a row sorts faster than rows of numbers
    packed = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1])))[:, 0]
    _, first, index = np.unique(packed, return_index=True, return_inverse=True)
    return index.reshape(-1), [say(int(keys[k, 0]), *keys[k, 1:].tolist()) for k in first]


def why_of_policy(catalogue: Catalogue, price: float, lowest: float, rule_names: list[str]) -> Callable[..., str]:
    """Return how decisions at a price of money are explained."""
    costs = "there is no money" if price == np.inf else f"money costs {number(price)}"

    def say(kind: int, own: float, next_price: float, next_action: float, rule: float) -> str:
        following = pair_name(catalogue, int(next_action)) if next_action > 0 else ""
        return {
            NOTHING: "nothing",
            BOUGHT: f"bought at {number(own)}, {costs}",
            BOUGHT_BY_LOT: f"bought at {number(own)} by its lot, {costs}",
            WAITS: f"waits: {following} at {number(next_price)}, {costs}",
            WAITS_BY_LOT: f"waits by its lot: {following} at {number(next_price)}, {costs}",
            NO_STEP: f"nothing pays, down to a price of {number(lowest)}",
            CUT: "cut: the sends before it hold the money",
            BARRED: rule_names[int(rule)] if rule > 0 else "the rules allow no pair",
        }[kind]

    return say

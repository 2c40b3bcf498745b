"""The life of the made-up shop, week by week: who is there, what is sent to whom, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from envs.configuration import CONF
from envs.offers.constraints.contact_rules import ContactRules
from envs.offers.example_shop.customers import as_columns, true_parameters
from envs.offers.example_shop.yaml_files import CONFIG, GAP_SHARE, SENDING_SHARE
from envs.offers.populations.base import Sample
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import (
    EXPECTATIONS,
    HABITS,
    SUBSCRIBED,
    UNIFORMS,
    UNSUBSCRIBED,
    Customers,
    CustomerState,
    RewardConfig,
    World,
)
from envs.offers.world.transition import transition

MOVED_AWAY = 0.001  # share of customers who leave in a week
MARGIN_NOISE = (-0.08, 0.4)  # of a purchase's margin: mean and standard deviation of the logarithm; its mean is 1


@dataclass(frozen=True)
class Stay:
    """The weeks in which N customers are in the shop, from `first` to `last`, both included, int64 [N]."""

    first: Tensor
    last: Tensor

    def includes(self, week: int) -> Tensor:
        """Tell who is there in a week, bool [N]."""
        return (self.first <= week) & (week <= self.last)


@dataclass(frozen=True)
class Week:
    """What was sent to N customers in a week, and what came of it; nothing for those who were not there."""

    present: Tensor  #: bool [N]
    offer: Tensor  #: 0 for nothing, int64 [N]
    channel: Tensor  #: int64 [N]
    propensity: Tensor  #: of the decision taken, before it was known whether the week is a gap, float64 [N]
    bought: Tensor  #: bool [N]
    redeemed: Tensor  #: bool [N]
    margin: Tensor  #: money of the purchase, 0 without one, float64 [N]
    unsubscribed: Tensor  #: in this week, bool [N]


class Listed:
    """The customers of a list, as contact rules read them."""

    def __init__(self, rows: list[dict[str, str]]):
        self.columns = as_columns(rows)
        self.ids = [row["Customer No"] for row in rows]


def shipped(name: str) -> DictConfig:
    """Return conf/env/NAME.yaml without its defaults."""
    return _without_defaults(OmegaConf.load(CONF / f"env/{name}.yaml"))


def shop_file(name: str) -> DictConfig:
    """Return a file of the shop's own configuration without its defaults."""
    return _without_defaults(OmegaConf.create(CONFIG[name].format(folder="")))


def _without_defaults(config) -> DictConfig:
    config.pop("defaults", None)
    return config


def _part(config) -> Any:
    return instantiate(config, _convert_="all")


class Shop:
    """The shop's world, rules and customers; `live` brings a week after another.

    Customers respond by the world's equations (envs/offers/world) under parameters of their own. The shop sends nothing
    in one of twelve weeks, drawn by chance, and in the other weeks a message to half of those whom the rules allow one,
    any of the allowed pairs with the same probability. An account without a purchase in a whole quarter is closed at
    the quarter's end; some customers move away. `first` [N] is the week in which each customer joins.
    """

    def __init__(self, rows: list[dict[str, str]], first: Tensor, seed: int):
        self.catalogue: Catalogue = _part(shop_file("env/catalogue/shop.yaml"))
        reward: RewardConfig = _part(shipped("reward/default"))
        self.world: World = _part(shipped("world/full"))(self.catalogue, reward)
        self.generator = torch.Generator().manual_seed(2 * seed + 1)
        self.gaps = torch.Generator().manual_seed(seed)
        self.customers: Customers = true_parameters(rows, self.catalogue, self.generator)
        n = len(rows)
        zeros = torch.zeros(n, dtype=torch.long)
        habit = torch.randint(HABITS, (n,), generator=self.generator)
        expectation = torch.randint(EXPECTATIONS - 1, (n,), generator=self.generator)
        self.state = CustomerState(habit, zeros, expectation, zeros + SUBSCRIBED)
        rules = OmegaConf.merge(shipped("contact_rules/none"), shop_file("env/contact_rules/shop.yaml"))
        self.rules: ContactRules = _part(rules)(self.catalogue, Listed(rows))
        sample = Sample(self.customers, torch.zeros(n, 0), self.state, torch.arange(n))
        self.policy = self.rules.policy(sample)
        self.opted_out = zeros.bool()  # as the shop knows it; it goes on writing to those who have churned
        self.stay = Stay(first, torch.full((n,), torch.iinfo(torch.long).max))
        self.contacted: list[Tensor] = []
        self.bought_this_quarter = zeros.bool()
        self.week = 0

    def uniforms(self, *size: int) -> Tensor:
        """Draw uniforms of the customers' world."""
        return torch.rand(*size, generator=self.generator, dtype=torch.float64)

    def margins(self) -> Tensor:
        """Draw what a purchase in the week brings each customer's shop, [N]."""
        mean, sd = MARGIN_NOISE
        noise = torch.randn(len(self.customers), generator=self.generator, dtype=torch.float64)
        return self.customers.margin * torch.exp(mean + sd * noise)

    def allowed_actions(self) -> Tensor:
        """Return what the shop may send in the coming week, as it knows its customers, bool [N, P]."""
        present = self.stay.includes(self.week)
        return self.policy(present & ~self.opted_out, self.contacted).action_mask

    def decide(self) -> tuple[Tensor, Tensor]:
        """Return flat actions [N] and their propensities [N]."""
        mask = self.allowed_actions()
        allowed = mask[:, self.catalogue.action_codec.contacts]
        pairs = allowed.sum(1)
        is_gap = torch.rand((), generator=self.gaps) < GAP_SHARE
        sends = (pairs > 0) & (self.uniforms(len(mask)) < SENDING_SHARE) & ~is_gap
        nth = (self.uniforms(len(mask)) * pairs).long() + 1
        chosen = ((allowed.cumsum(1) == nth[:, None]) & allowed).long().argmax(1)
        action = torch.where(sends, self.catalogue.action_codec.nth_contact(chosen), 0)
        share = (1 - GAP_SHARE) * SENDING_SHARE
        free = torch.where(sends, share / pairs.clamp_min(1).double(), 1 - share)
        return action, torch.where(pairs > 0, free, 1.0)

    def live(self) -> Week:
        """Live through the next week."""
        present = self.stay.includes(self.week)
        action, propensity = self.decide()
        offer, channel = self.catalogue.action_codec.decode(action)
        season_week = self.week % self.world.weeks
        u = self.uniforms(UNIFORMS, len(present))
        before = self.state
        after, bought, redeemed, _ = transition(self.customers, self.world, season_week, before, offer, channel, u)
        bought, redeemed = bought & present, redeemed & present
        self.state = CustomerState(*(torch.where(present, new, old) for new, old in zip(after, before)))
        margin = self.margins()
        self.contacted.append(offer > 0)
        unsubscribed = (before.status == SUBSCRIBED) & (self.state.status == UNSUBSCRIBED)
        self.opted_out = self.opted_out | unsubscribed
        self._close_accounts(season_week, present, bought)
        self.week += 1
        return Week(
            present=present,
            offer=offer,
            channel=channel,
            propensity=propensity,
            bought=bought,
            redeemed=redeemed,
            margin=torch.where(bought, margin, 0.0),
            unsubscribed=unsubscribed,
        )

    def _close_accounts(self, season_week: int, present: Tensor, bought: Tensor) -> None:
        """Let customers go: those who move away, and at a quarter's end the accounts that bought nothing in it."""
        self.bought_this_quarter = self.bought_this_quarter | bought
        gone = self.uniforms(len(present)) < MOVED_AWAY
        if season_week == self.world.weeks - 1:
            whole_quarter = self.stay.first <= self.week - season_week
            gone |= whole_quarter & ~self.bought_this_quarter
            self.bought_this_quarter = torch.zeros_like(bought)
        self.stay = Stay(self.stay.first, torch.where(present & gone, self.week, self.stay.last))

    def mailing(self, offer: str, channel: str) -> tuple[Tensor, Week, Tensor]:
        """Randomise one mailing in the coming week among those who may get it, without living on.

        Returns who took part, bool [N], the week, and the discount that redemptions took off, money [N].
        """
        pair = self.catalogue.offers.index(offer), self.catalogue.channels.index(channel)
        mask = self.allowed_actions()
        takes_part = mask[:, self.catalogue.action_codec.encode(*pair)]
        mailed = takes_part & (self.uniforms(len(mask)) < SENDING_SHARE)
        offers, channels = (torch.where(mailed, x, 0) for x in pair)
        u = self.uniforms(UNIFORMS, len(mask))
        week = self.week % self.world.weeks
        _, bought, redeemed, _ = transition(self.customers, self.world, week, self.state, offers, channels, u)
        discount = self.catalogue.value[offers] * redeemed
        seen = Week(
            present=takes_part,
            offer=offers,
            channel=channels,
            propensity=torch.full((len(mask),), SENDING_SHARE, dtype=torch.float64),
            bought=bought,
            redeemed=redeemed,
            margin=torch.where(bought, self.margins(), 0.0),
            unsubscribed=torch.zeros_like(bought),
        )
        return takes_part, seen, discount

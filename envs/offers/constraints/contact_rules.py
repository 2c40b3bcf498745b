"""What must not be sent to whom: one mask for training, planning, clearing and the bound, and a reason for each pair."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterable, NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.constraints.expressions import holds
from envs.offers.world.history import History
from envs.offers.populations.base import Population, Sample, lots
from envs.offers.world.customers import SUBSCRIBED


class Allowed(NamedTuple):
    """What N customers may be sent now: pairs bool [N, (O+1)·C]; left [N, K], the share of each contact cap left; and what
    has been seen of them, None where nobody asks."""

    pairs: Tensor
    left: Tensor
    history: History | None = None

    def seen(self, features: Tensor) -> Tensor:
        """Add what is left of the caps, which a policy must know, to features [N, F]."""
        return torch.cat((features, self.left.to(features)), -1) if self.left.shape[1] else features

    def take(self, rows: slice) -> Allowed:
        """Take some of the customers."""
        return Allowed(self.pairs[rows], self.left[rows], self.history and self.history.take(rows))


class Ban(NamedTuple):
    """Customers [H] (or all N of a sample) who can't be sent an offer or through a channel (None: any), and why."""

    reason: str
    offer: int | None
    channel: int | None
    who: Tensor


@dataclass(frozen=True)
class Permits:
    """The rules for N customers: static bool [N, O+1, C], None where nothing is forbidden for good; (weeks, contacts)."""

    catalogue: Catalogue
    static: Tensor | None
    bans: tuple[Ban, ...]  # over the N customers
    caps: tuple[tuple[int, int], ...]

    def take(self, rows: slice) -> Permits:
        """Take some of the customers."""
        return replace(self, static=None if self.static is None else self.static[rows],
                       bans=tuple(ban._replace(who=ban.who[rows]) for ban in self.bans))

    def now(self, history: History) -> Allowed:
        """Say what is allowed to customers of a history."""
        return self(history.status == SUBSCRIBED, history.contacts)._replace(history=history)

    def __call__(self, subscribed: Tensor, sent: list[Tensor] | Tensor) -> Allowed:
        """Say what is allowed to customers [N], who were contacted or not in the weeks before, bool [N] each."""
        left = [cap - used for (_, cap), used in zip(self.caps, self._used(subscribed, sent))]
        contactable = subscribed
        for rest in left:
            contactable = contactable & (rest > 0)
        pairs = self.catalogue.allowed(contactable)
        if self.static is not None:
            pairs = pairs & self.static
        left = [rest / cap for (_, cap), rest in zip(self.caps, left)]
        return Allowed(pairs.flatten(1), torch.stack(left, 1) if left else pairs.new_zeros(len(pairs), 0))

    def _used(self, like: Tensor, sent: list[Tensor] | Tensor) -> list[Tensor]:
        past = sent if isinstance(sent, Tensor) else torch.stack([torch.zeros_like(like), *sent])
        return [past[max(len(past) - weeks + 1, 0):].long().sum(0) for weeks, _ in self.caps]

    @property
    def contacts(self) -> Tensor | None:
        """The contacts that are allowed for good, [O·C, 1, 1, 1, N], as the dynamic program lays them out."""
        if self.static is None:
            return None
        return self.static[:, 1:].flatten(1).T.contiguous()[:, None, None, None]

    def enforce(self, pairs: Tensor, offer: Tensor, channel: Tensor) -> Tensor:
        """Turn offers [N] that are not among the `pairs` allowed [N, (O+1)·C] through their channel [N] into nothing."""
        pair = self.catalogue.action_codec.encode(offer, channel)
        return torch.where(pairs.gather(1, pair[:, None])[:, 0], offer, 0)

    def reasons(self, customer: int, offer: int, channel: int, subscribed: bool, sent: list[Tensor]) -> list[str]:
        """Say why a customer may not be sent a pair now: every rule that forbids it, none where it is allowed."""
        if offer == 0:
            return [] if channel == 0 else ["no such pair"]
        found = [] if subscribed else ["not subscribed"]
        found += [ban.reason for ban in self.bans if ban.offer in (None, offer) and ban.channel in (None, channel)
                  and ban.who[customer]]
        used = self._used(torch.zeros(1, dtype=torch.bool), [x[customer:customer + 1].cpu() for x in sent])
        return found + [_cap_name(*cap) for cap, n in zip(self.caps, used) if n.item() >= cap[1]]

    def shares(self) -> dict[str, float]:
        """Share of the customers that each lasting rule holds for."""
        return {ban.reason: ban.who.double().mean().item() for ban in self.bans}


class Rules:
    """Read the rules of conf/env/rules and hold them against the customers of a population.

    eligible {offer: expression} and consent {channel: expression}: what must hold of a customer's columns; age {column,
    limits: {offer: [from, to]}}, to included, null for none; caps [{weeks, contacts}]: at most so many contacts in any so
    many weeks that follow each other; holdout {share, salt}: customers never contacted, drawn by their id, and so the
    same in every run and table. What is not named is free. A customer without an entry in a column that a rule reads
    counts as one it forbids. Raises ValueError on what doesn't fit catalogue or columns.
    """

    def __init__(self, catalogue: Catalogue, population: Population, *, eligible: dict, age: dict, consent: dict, caps: list,
                 holdout: dict):
        self.catalogue, self.holdout = catalogue, holdout
        self.columns, self.ids = population.columns, population.ids
        _fields("env.rules.age", age, {"column", "limits"})
        _fields("env.rules.holdout", holdout, {"share", "salt"})
        if not 0 <= holdout["share"] < 1:
            raise ValueError(f"env.rules.holdout.share: expected a share in [0, 1), got {holdout['share']}")
        conditions = [*self._limits(age), *(
            (f"env.rules.{rule}.{name}", f"{rule} {name}: {text}", names.index(name) if rule == "eligible" else None,
             names.index(name) if rule == "consent" else None, text)
            for rule, given, names in (("eligible", eligible, catalogue.offers), ("consent", consent, catalogue.channels))
            for name, text in self._known(rule, given, names))]
        if conditions and self.columns is None:
            raise ValueError(f"{conditions[0][0]}: drawn customers have no columns; rules on them need "
                             "env/population=table or complete_journey")
        self.bans = tuple(Ban(reason, offer, channel, torch.tensor(~holds(text, self.columns, where)))
                          for where, reason, offer, channel, text in conditions)
        self.caps = tuple(self._cap(cap) for cap in caps)
        if self.columns is not None and holdout["share"]:
            self.bans += (self._held(lots(self.ids, holdout["salt"])),)

    @property
    def observed(self) -> int:
        """How many columns `Allowed.seen` adds to the features."""
        return len(self.caps)

    def permits(self, sample: Sample) -> Permits:
        """Apply the rules to a sample."""
        device, n = sample.state.habit.device, len(sample.state.habit)
        self.catalogue = catalogue = self.catalogue.to(device, torch.float64)
        bans = self.bans
        if self.columns is not None:
            rows = sample.row.cpu()
            bans = tuple(ban._replace(who=ban.who[rows].to(device)) for ban in bans)
        elif self.holdout["share"]:  # drawn customers have no id but their place
            bans = (self._held(lots(map(str, range(n)), self.holdout["salt"]).to(device)),)
        if not bans:
            return Permits(catalogue, None, (), self.caps)
        static = catalogue.allowed(torch.ones(n, dtype=torch.bool, device=device))
        for ban in bans:
            offers = slice(1, None) if ban.offer is None else slice(ban.offer, ban.offer + 1)
            channels = slice(None) if ban.channel is None else slice(ban.channel, ban.channel + 1)
            static[:, offers, channels] &= ~ban.who[:, None, None]
        return Permits(catalogue, static, bans, self.caps)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _held(self, lot: Tensor) -> Ban:
        return Ban("holdout", None, None, lot < self.holdout["share"])

    @staticmethod
    def _known(rule: str, given: dict, names: tuple[str, ...]) -> Iterable[tuple[str, str]]:
        kind = "channel" if rule == "consent" else "offer"
        for name, text in given.items():
            if name not in names or kind == "offer" and name == names[0]:
                raise ValueError(f"env.rules.{rule}: unknown {kind} '{name}'; the catalogue has "
                                 f"{', '.join(names[kind == 'offer':])}")
            yield name, text

    def _limits(self, age: dict) -> Iterable[tuple]:
        if age["limits"] and not age["column"]:
            raise ValueError("env.rules.age.column: expected the column that the limits are for")
        for offer, limits in self._known("age.limits", age["limits"], self.catalogue.offers):
            if not isinstance(limits, list) or len(limits) != 2 or not any(x is not None for x in limits) or not all(
                    x is None or isinstance(x, (int, float)) and not isinstance(x, bool) for x in limits):
                raise ValueError(f"env.rules.age.limits.{offer}: expected [from, to], null for none, got {limits}")
            low, high = limits
            column = f"`{age['column']}`"
            text = " and ".join([f"{column} >= {low}"] * (low is not None) + [f"{column} <= {high}"] * (high is not None))
            yield (f"env.rules.age.limits.{offer}", f"age {offer}: {text.replace('`', '')}",
                   self.catalogue.offers.index(offer), None, text)

    @staticmethod
    def _cap(cap: dict) -> tuple[int, int]:
        _fields("env.rules.caps", cap, {"weeks", "contacts"})
        weeks, contacts = cap["weeks"], cap["contacts"]
        if not all(isinstance(x, int) and not isinstance(x, bool) for x in (weeks, contacts)) or min(weeks, contacts) < 1:
            raise ValueError(f"env.rules.caps: expected whole numbers from 1, got {cap}")
        return weeks, contacts


def _cap_name(weeks: int, contacts: int) -> str:
    return f"cap: {contacts} contacts in {weeks} week{'s' * (weeks > 1)}"


def _fields(where: str, given: dict, fields: set[str]) -> None:
    if not isinstance(given, dict) or set(given) != fields:
        raise ValueError(f"{where}: expected {', '.join(sorted(fields))}, got {given}")

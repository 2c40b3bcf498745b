"""Contact rules: what may not be sent to whom, as one action mask for training, planning, clearing and the bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.constraints.expressions import holds
from envs.offers.populations.base import Population, Sample, hash_uniform
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import SUBSCRIBED
from envs.offers.world.history import History


class ContactOptions(NamedTuple):
    """The pairs that may be sent to N customers now, and what a policy observes of the rules."""

    action_mask: Tensor  # by flat action, bool [N, P]
    caps_left: Tensor  # share of each contact cap that is left, [N, K]
    history: History | None = None  # None where no policy observes it

    def with_caps_left(self, features: Tensor) -> Tensor:
        """Append the shares of the caps that are left, which a policy must observe, to features [N, F]."""
        return torch.cat((features, self.caps_left.to(features)), -1) if self.caps_left.shape[1] else features

    def take(self, rows: slice) -> ContactOptions:
        """Return the options of some of the customers."""
        return ContactOptions(self.action_mask[rows], self.caps_left[rows], self.history and self.history.take(rows))


class Condition(NamedTuple):
    """An expression that must hold of a customer's columns for an offer or a channel (None: any)."""

    key: str  # key of the configuration, for messages
    reason: str
    offer: int | None
    channel: int | None
    text: str


class Exclusion(NamedTuple):
    """A lasting rule: the customers to whom an offer, or through whom a channel, may not be sent (None: any)."""

    reason: str
    offer: int | None
    channel: int | None
    excluded: Tensor  # bool, [H] over the customers of a table or [N] over those of a sample


@dataclass(frozen=True)
class ContactPolicy:
    """The contact rules applied to N customers."""

    catalogue: Catalogue
    static_mask: Tensor | None  # pairs that lasting rules allow, bool [N, O+1, C]; None where they forbid nothing
    exclusions: tuple[Exclusion, ...]  # over the N customers
    caps: tuple[tuple[int, int], ...]  # (weeks, contacts)

    def take(self, rows: slice) -> ContactPolicy:
        """Return the policy of some of the customers."""
        static_mask = None if self.static_mask is None else self.static_mask[rows]
        exclusions = tuple(x._replace(excluded=x.excluded[rows]) for x in self.exclusions)
        return replace(self, static_mask=static_mask, exclusions=exclusions)

    def options(self, history: History) -> ContactOptions:
        """Return what may be sent to customers with a history."""
        return self(history.status == SUBSCRIBED, history.contacts)._replace(history=history)

    def __call__(self, subscribed: Tensor, contacted: list[Tensor] | Tensor) -> ContactOptions:
        """Return what may be sent, given who is subscribed and who was contacted in each past week, bool [N] each."""
        left = [cap - used for (_, cap), used in zip(self.caps, self._used(subscribed, contacted))]
        contactable = subscribed
        for rest in left:
            contactable = contactable & (rest > 0)
        action_mask = self.catalogue.action_mask(contactable)
        if self.static_mask is not None:
            action_mask = action_mask & self.static_mask
        shares = [rest / cap for (_, cap), rest in zip(self.caps, left)]
        caps_left = torch.stack(shares, 1) if shares else action_mask.new_zeros(len(action_mask), 0)
        return ContactOptions(action_mask.flatten(1), caps_left)

    def _used(self, like: Tensor, contacted: list[Tensor] | Tensor) -> list[Tensor]:
        past = contacted if isinstance(contacted, Tensor) else torch.stack([torch.zeros_like(like), *contacted])
        return [past[max(len(past) - weeks + 1, 0) :].long().sum(0) for weeks, _ in self.caps]

    @property
    def contacts(self) -> Tensor | None:
        """The contacts that lasting rules allow, bool [O·C, 1, 1, 1, N], in the layout of the dynamic program."""
        if self.static_mask is None:
            return None
        return self.static_mask[:, 1:].flatten(1).T.contiguous()[:, None, None, None]

    def enforce(self, action_mask: Tensor, offer: Tensor, channel: Tensor) -> Tensor:
        """Return offers [N] for channels [N]: the requested ones where the mask bool [N, P] allows, else nothing."""
        index = self.catalogue.action_codec.encode(offer, channel)
        return torch.where(action_mask.gather(1, index[:, None])[:, 0], offer, 0)

    def reasons(self, customer: int, offer: int, channel: int, subscribed: bool, contacted: list[Tensor]) -> list[str]:
        """List the rules that forbid to send an offer through a channel to a customer now; empty where none does."""
        if offer == 0:
            return [] if channel == 0 else ["no such pair"]
        found = [] if subscribed else ["not subscribed"]
        found += [
            x.reason
            for x in self.exclusions
            if x.offer in (None, offer) and x.channel in (None, channel) and x.excluded[customer]
        ]
        used = self._used(torch.zeros(1, dtype=torch.bool), [x[customer : customer + 1].cpu() for x in contacted])
        return found + [_cap_name(*cap) for cap, n in zip(self.caps, used) if n.item() >= cap[1]]

    def shares(self) -> dict[str, float]:
        """Share of the customers that each lasting rule excludes."""
        return {x.reason: x.excluded.double().mean().item() for x in self.exclusions}


class ContactRules:
    """The rules of conf/env/contact_rules, applied to the customers of a population.

    eligible: {offer: expression} and consent: {channel: expression} on a customer's columns, which must hold.
    age: {column, limits: {offer: [from, to]}}, both ends included, null for no limit.
    caps: [{weeks, contacts}], at most so many contacts in any so many consecutive weeks.
    holdout: {share, salt}, customers who are never contacted, drawn by their id and so the same in every run and table.

    Offers and channels without a rule are free. A rule excludes a customer who has no entry in a column that the rule
    reads. Raises ValueError where a rule doesn't fit the catalogue or the columns.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        population: Population,
        *,
        eligible: dict,
        age: dict,
        consent: dict,
        caps: list,
        holdout: dict,
    ):
        self.catalogue, self.holdout = catalogue, holdout
        self.columns, self.ids = population.columns, population.ids
        _check_fields("env.contact_rules.age", age, {"column", "limits"})
        _check_fields("env.contact_rules.holdout", holdout, {"share", "salt"})
        if not 0 <= holdout["share"] < 1:
            raise ValueError(f"env.contact_rules.holdout.share: expected a share in [0, 1), got {holdout['share']}")
        conditions = [
            *self._age_conditions(age),
            *self._conditions("eligible", eligible, catalogue.offers),
            *self._conditions("consent", consent, catalogue.channels),
        ]
        self.exclusions: tuple[Exclusion, ...] = ()
        if self.columns is not None:
            columns = self.columns
            self.exclusions = tuple(
                Exclusion(x.reason, x.offer, x.channel, torch.tensor(~holds(x.text, columns, x.key)))
                for x in conditions
            )
        elif conditions:
            raise ValueError(
                f"{conditions[0].key}: drawn customers have no columns; rules on them need "
                "env/population=customer_table or complete_journey"
            )
        self.caps = tuple(self._cap(cap) for cap in caps)
        if self.ids is not None and holdout["share"]:  # given customers; drawn ones are held out as they are drawn
            self.exclusions += (self._held_out(hash_uniform(self.ids, holdout["salt"])),)

    @property
    def num_cap_features(self) -> int:
        """Number of columns that `ContactOptions.with_caps_left` appends to the features."""
        return len(self.caps)

    def policy(self, sample: Sample) -> ContactPolicy:
        """Apply the rules to a sample."""
        device, n = sample.state.habit.device, len(sample.state.habit)
        self.catalogue = catalogue = self.catalogue.to(device, torch.float64)
        exclusions = self.exclusions
        if self.columns is not None:
            assert sample.row is not None  # customers who have columns are rows of them
            rows = sample.row.cpu()
            exclusions = tuple(x._replace(excluded=x.excluded[rows].to(device)) for x in exclusions)
        elif self.holdout["share"]:  # drawn customers have no id but their position
            exclusions = (self._held_out(hash_uniform(map(str, range(n)), self.holdout["salt"]).to(device)),)
        if not exclusions:
            return ContactPolicy(catalogue, None, (), self.caps)
        static_mask = catalogue.action_mask(torch.ones(n, dtype=torch.bool, device=device))
        for x in exclusions:
            offers = slice(1, None) if x.offer is None else slice(x.offer, x.offer + 1)
            channels = slice(None) if x.channel is None else slice(x.channel, x.channel + 1)
            static_mask[:, offers, channels] &= ~x.excluded[:, None, None]
        return ContactPolicy(catalogue, static_mask, exclusions, self.caps)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _held_out(self, u: Tensor) -> Exclusion:
        return Exclusion("holdout", None, None, u < self.holdout["share"])

    @staticmethod
    def _known(rule: str, given: dict, names: tuple[str, ...]) -> Iterable[tuple[str, str]]:
        kind = "channel" if rule == "consent" else "offer"
        for name, text in given.items():
            if name not in names or (kind == "offer" and name == names[0]):
                raise ValueError(
                    f"env.contact_rules.{rule}: unknown {kind} '{name}'; the catalogue has "
                    f"{', '.join(names[kind == 'offer' :])}"
                )
            yield name, text

    def _conditions(self, rule: str, given: dict, names: tuple[str, ...]) -> Iterable[Condition]:
        for name, text in self._known(rule, given, names):
            at = names.index(name)
            offer, channel = (at, None) if rule == "eligible" else (None, at)
            yield Condition(f"env.contact_rules.{rule}.{name}", f"{rule} {name}: {text}", offer, channel, text)

    def _age_conditions(self, age: dict) -> Iterable[Condition]:
        if age["limits"] and not age["column"]:
            raise ValueError("env.contact_rules.age.column: expected the column that the limits are for")
        for offer, limits in self._known("age.limits", age["limits"], self.catalogue.offers):
            if (
                not isinstance(limits, list)
                or len(limits) != 2
                or not any(x is not None for x in limits)
                or not all(x is None or (isinstance(x, (int, float)) and not isinstance(x, bool)) for x in limits)
            ):
                raise ValueError(
                    f"env.contact_rules.age.limits.{offer}: expected [from, to], null for none, got {limits}"
                )
            low, high = limits
            column = f"`{age['column']}`"
            text = " and ".join(
                [f"{column} >= {low}"] * (low is not None) + [f"{column} <= {high}"] * (high is not None)
            )
            yield Condition(
                f"env.contact_rules.age.limits.{offer}",
                f"age {offer}: {text.replace('`', '')}",
                self.catalogue.offers.index(offer),
                None,
                text,
            )

    @staticmethod
    def _cap(cap: dict) -> tuple[int, int]:
        _check_fields("env.contact_rules.caps", cap, {"weeks", "contacts"})
        weeks, contacts = cap["weeks"], cap["contacts"]
        if (
            not all(isinstance(x, int) and not isinstance(x, bool) for x in (weeks, contacts))
            or min(weeks, contacts) < 1
        ):
            raise ValueError(f"env.contact_rules.caps: expected whole numbers from 1, got {cap}")
        return weeks, contacts


def _cap_name(weeks: int, contacts: int) -> str:
    return f"cap: {contacts} contacts in {weeks} week{'s' * (weeks > 1)}"


def _check_fields(where: str, given: dict, fields: set[str]) -> None:
    if not isinstance(given, dict) or set(given) != fields:
        raise ValueError(f"{where}: expected {', '.join(sorted(fields))}, got {given}")

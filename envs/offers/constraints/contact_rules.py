"""Contact rules: what may not be sent to whom, as one action mask for training, planning, clearing and the bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.offers.constraints.contact_caps import ContactCap, cap_columns
from envs.offers.constraints.contact_policy import ContactPolicy, Exclusion
from envs.offers.constraints.expressions import holds
from envs.offers.populations.base import Sample, hash_uniform
from envs.offers.world.catalogue import Catalogue


class RuleRows(Protocol):
    """What contact rules read of customers, who are rows of a table, or drawn."""

    @property
    def columns(self) -> Mapping[str, np.ndarray] | None:
        """Columns of H given customers, [H] each; None for drawn ones."""

    @property
    def ids(self) -> list[str] | None:
        """Of the given customers; None for drawn ones."""


class Condition(NamedTuple):
    """An expression that must hold of a customer's columns for an offer or a channel (None: any)."""

    key: str  # key of the configuration, for messages
    reason: str
    offer: int | None
    channel: int | None
    text: str


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
        population: RuleRows,
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
        self.caps = tuple(read_cap(cap) for cap in caps)
        if self.ids is not None and holdout["share"]:  # given customers; drawn ones are held out as they are drawn
            self.exclusions += (self._held_out(hash_uniform(self.ids, holdout["salt"])),)

    @property
    def cap_columns(self) -> list[str]:
        """Names of the columns that `ContactOptions.with_caps_left` appends to the features."""
        return cap_columns(self.caps)

    def policy(self, sample: Sample) -> ContactPolicy:
        """Apply the rules to a sample."""
        habit = sample.state.habit
        return self.policy_of(sample.row, len(habit), habit.device)

    def policy_of(self, row: Tensor | None, n: int, device: torch.device) -> ContactPolicy:
        """Apply the rules to n customers, who are rows [n] of the population's columns (None: drawn, without any)."""
        self.catalogue = catalogue = self.catalogue.to(device, torch.float64)
        exclusions = self.exclusions
        if self.columns is not None:
            assert row is not None  # customers who have columns are rows of them
            rows = row.cpu()
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


def read_cap(cap: dict) -> ContactCap:
    """Read a contact cap; raises ValueError where it is none."""
    _check_fields("env.contact_rules.caps", cap, {"weeks", "contacts"})
    weeks, contacts = cap["weeks"], cap["contacts"]
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in (weeks, contacts)) or min(weeks, contacts) < 1:
        raise ValueError(f"env.contact_rules.caps: expected whole numbers from 1, got {cap}")
    return ContactCap(weeks, contacts)


def _check_fields(where: str, given: dict, fields: set[str]) -> None:
    if not isinstance(given, dict) or set(given) != fields:
        raise ValueError(f"{where}: expected {', '.join(sorted(fields))}, got {given}")

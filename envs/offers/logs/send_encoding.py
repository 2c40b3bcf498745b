"""Turn the log of a shop's sends into decisions that learners read: observations, masks and rewards of an environment.

What a policy observes of a customer is what it would have observed: features of the customer table by id, which pairs
the contact rules allowed, and the view's memory of all that the log shows of the customer before the decision. A season
is the environment's number of weeks; the memory goes on from season to season.

The customer table and the contact rules are those of today, for all weeks of the log.

Profit is money: margin less spend, and `sends.trips` a purchase, which is 0 unless the shop sets it. What one unit of
spend must bring, `sends.price`, is 1 + λ, λ being the price of money that a policy observes: net is profit − λ · spend.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactPolicy
from envs.offers.logs.customer_weeks import ARMS, CustomerWeeks
from envs.offers.logs.schema import COLUMNS
from envs.offers.logs.send_log import Calendar, read
from envs.offers.world.customers import SUBSCRIBED, UNSUBSCRIBED, CustomerState
from envs.offers.world.history import PassedWeek, SeenWeek
from rlcore.offline.logged_dataset import LoggedDataset

CHUNK = 8192  # customers that are encoded at once


def log_chunks(env, path: str, split: str) -> Iterator[LoggedDataset]:
    """Read a log of sends, and yield the decisions on the customers of a side of the table in chunks.

    Raises ValueError where the environment's customers are not those of the log, or its view shows what no shop sees.
    """
    given = env.population.given
    if given is None:
        raise ValueError(f"{path}: expected the customers that it is about, as in env/population=customer_table")
    if not env.codec.hides_state:
        raise ValueError(
            f"{path}: a log of sends shows no habit, fatigue or expectation: expected env/observation=history or belief"
        )
    catalogue = env.world.catalogue
    log, calendar = read(path, list(catalogue.offers), list(catalogue.channels))
    index = {name: k for k, name in enumerate(given.ids)}
    row = np.array([index.get(x, -1) for x in log.ids])
    unknown = (row < 0) & (log.last >= log.first)
    if unknown.any():
        print(
            f"warning: {path}: {int(unknown.sum()):,} customers are not in the customer table, such as "
            f"'{log.ids[int(unknown.argmax())]}': left out",
            file=sys.stderr,
        )
    side = np.zeros(len(given.ids), dtype=bool)
    side[given.customers[split].numpy()] = True
    chosen = np.flatnonzero((row >= 0) & side[row.clip(0, None)] & (log.last >= log.first))
    if not len(chosen):
        raise ValueError(f"{path}: no customer of the {split} side of the customer table is in it")
    broken, drawn = 0, log.arms_with_propensities()
    for start in range(0, len(chosen), CHUNK):
        at = chosen[start : start + CHUNK]
        encoder = Encoder(env, log, calendar, at, torch.from_numpy(row[at]), drawn)
        yield from encoder.seasons()
        broken += encoder.broken
    if broken:
        print(
            f"warning: {path}: {broken:,} sends break env.contact_rules as they are now; they count as possible, and "
            "where a lasting rule is broken, the weeks without a send of that customer keep their propensity",
            file=sys.stderr,
        )


@dataclass
class Week:
    """A week of N customers as decisions."""

    obs: Tensor  #: [N, D]
    action_mask: Tensor  #: bool [N, P]
    is_forced: Tensor  #: whether nothing could be sent, whatever was drawn, bool [N]


class Encoder:
    """Encodes the weeks of N customers: the columns `at` of a log, the rows `row` of the customer table.

    `drawn` are the log's arms with propensities. A decision that the rules forced has propensity 1, but not in a week
    in which no decision of its arm has a propensity: those who could be sent nothing would be left alone of the arm,
    and they are not like the others.
    """

    def __init__(self, env, log: CustomerWeeks, calendar: Calendar, at: np.ndarray, row: Tensor, drawn: np.ndarray):
        self.env, self.log, self.at, self.device = env, log, at, env.device
        generator = torch.Generator(env.device).manual_seed(0)  # parameters of the sample are not read
        self.ids = tuple(env.population.given.ids)
        self.row = row.to(env.device)
        self.sample = env.population.given.sample(self.row, generator)
        self.features = self.sample.features.to(env.world.season)
        self.contact_policy = env.contact_rules.policy(self.sample)
        self.drawn = torch.from_numpy(drawn).to(self.device)
        self.price_of_money = calendar.price - 1.0
        seen_price = max(
            self.price_of_money, env.price_range[0]
        )  # policies know no lower one, and observe its logarithm
        self.seen_price = torch.full((len(row),), seen_price, device=env.device)
        self.trip_value = calendar.trips
        self.policies = ("sends", *ARMS) if (log.arm >= 0).any() else ("sends",)
        self.broken = 0  # sends that the rules do not allow
        self.earlier_rules = self.without_broken_rules()

    def cell(self, name: str, week: int) -> Tensor:
        """Return what the log has of a week, [N]."""
        return torch.from_numpy(self.log.cells((name,))[name][week, self.at]).to(self.device)

    def without_broken_rules(self) -> ContactPolicy:
        """Return the contact rules without the lasting ones of customers to whom the log shows sends against these.

        Consents and eligibility are known as they are now. Such customers had others at the time of the log, so that in
        their weeks without a send something may have been possible.
        """
        policy, log = self.contact_policy, self.log
        if policy.static_mask is None:
            return policy
        offer, channel = (torch.from_numpy(x[:, self.at]).long().to(self.device) for x in (log.offer, log.channel))
        customer = torch.arange(len(self.at), device=self.device)
        breaks = ~policy.static_mask[customer, offer, channel] & (offer > 0)
        if not breaks.any():
            return policy
        return replace(policy, static_mask=policy.static_mask | breaks.any(0)[:, None, None])

    def seasons(self) -> Iterator[LoggedDataset]:
        """Yield the decisions of each season in which a customer is in the log, each customer's in order."""
        env, codec = self.env, self.env.codec
        length = env.world.weeks
        memory = codec.start_memory(self.features)
        longest = max((cap.weeks for cap in self.contact_policy.caps), default=1)  # no cap looks further back
        contacts: deque[Tensor] = deque(maxlen=longest)
        season: list[dict[str, Tensor]] = []
        here = self.observe(memory, contacts, 0)
        for week in range(self.log.weeks):
            seen = self.seen(week)
            present = torch.from_numpy(self.log.is_present(week)[self.at]).to(self.device)
            if week and week % length == 0:
                memory = codec.next_season(memory)
                here = self.observe(memory, contacts, week)
            memory = torch.where(present[:, None], self.remember(memory, week, seen), memory)
            contacts.append(seen.offer > 0)
            then = self.observe(memory, contacts, week + 1)
            season.append(self.decisions(week, seen, present, here, then))
            here = then
            if (week + 1) % length == 0 or week + 1 == self.log.weeks:
                found = self.dataset(season, week // length)
                if len(found):
                    yield found
                season = []

    def observe(self, memory: Tensor, contacts: deque[Tensor], week: int) -> Week:
        """Return what a policy observes at the start of a week, and what it may send."""
        codec, n = self.env.codec, len(self.features)
        state = self.state(memory)
        subscribed = codec.subscribed(state, memory)
        options = self.contact_policy(subscribed, list(contacts))
        possible = options.action_mask
        if self.earlier_rules is not self.contact_policy:
            possible = self.earlier_rules(subscribed, list(contacts)).action_mask
        features = options.with_caps_left(self.features)
        week_of_season = week % self.env.world.weeks
        obs = codec.encode(features, state, memory, week_of_season, self.seen_price, self.features.new_zeros(n))
        return Week(obs.float(), options.action_mask, possible.sum(1) == 1)

    def state(self, memory: Tensor) -> CustomerState:
        """Return the state as far as a shop knows it; a view that hides states reads nothing of it."""
        none = torch.zeros(len(memory), dtype=torch.long, device=self.device)
        status = torch.where(memory[:, 0] > 0, UNSUBSCRIBED, SUBSCRIBED)
        return CustomerState(none, none, none, status)

    def seen(self, week: int) -> SeenWeek:
        """Return what the log shows of a week."""
        return SeenWeek(
            offer=self.cell("offer", week).long(),
            channel=self.cell("channel", week).long(),
            bought=self.cell("bought", week),
            redeemed=self.cell("redeemed", week),
            opted_out=self.cell("unsubscribed", week),
            margin=self.cell("margin", week).to(self.features),
        )

    def remember(self, memory: Tensor, week: int, seen: SeenWeek) -> Tensor:
        """Return the view's memory after a week."""
        state = self.state(memory)
        passed = PassedWeek(week % self.env.world.weeks, seen, state, state)
        return self.env.codec.remember(memory, self.features, passed)

    def decisions(self, week: int, seen: SeenWeek, present: Tensor, here: Week, then: Week) -> dict[str, Tensor]:
        """Return a week's columns, [N, …] each."""
        world = self.env.world
        action = world.catalogue.action_codec.encode(seen.offer, seen.channel)
        allowed = here.action_mask.gather(1, action[:, None])[:, 0]
        self.broken += int((present & ~allowed).sum())
        action_mask = here.action_mask.scatter(1, action[:, None], True)
        spend = world.catalogue.spend(seen.offer, seen.channel, seen.redeemed.to(world.season))
        propensity, policy = self.cell("propensity", week), self.cell("arm", week).long() + 1
        is_certain = here.is_forced & (action == 0) & self.drawn[week][policy]
        last = torch.from_numpy(week == self.log.last[self.at]).to(self.device)
        ends = torch.full_like(present, (week + 1) % world.weeks == 0)
        left = last & (week + 1 < self.log.weeks)
        return {
            "present": present,
            "row": self.cell("row", week).long(),
            "step": torch.full_like(action, week % world.weeks),
            "obs": here.obs,
            "action_mask": action_mask,
            "action": action,
            "propensity": torch.where(is_certain, 1.0, propensity),
            "policy": policy,
            "reward": seen.margin.float() + self.trip_value * seen.bought.float() - spend.float(),
            "cost": spend.float(),
            "trips": seen.bought.float(),
            "redeemed": seen.redeemed.float(),
            "margin": seen.margin.float(),
            "next_obs": then.obs,
            "next_action_mask": then.action_mask,
            "terminated": ends | left,
            "truncated": last & ~left & ~ends,
        }

    def dataset(self, season: list[dict[str, Tensor]], number: int) -> LoggedDataset:
        """Return the decisions of the weeks of a season."""
        columns = {key: torch.stack([week[key] for week in season], 1).flatten(0, 1) for key in season[0]}
        kept = columns.pop("present")
        columns = {key: x[kept] for key, x in columns.items()}
        count = int(kept.sum())
        zeros = torch.zeros(count, device=self.device)
        whole_zeros = torch.zeros(count, dtype=torch.long, device=self.device)
        return LoggedDataset(
            nvec=self.env.nvec,
            static_dim=self.env.static_dim,
            policies=self.policies,
            names=COLUMNS,
            unit_names=self.ids,
            unit=self.row.repeat_interleave(len(season))[kept],
            episode=whole_zeros + number,
            price=zeros + self.price_of_money,
            terminal_value=zeros,
            outcomes={key: columns.pop(key) for key in (*COLUMNS.outcomes, "margin")},
            alternatives={},
            **columns,
        )

"""Turn a shop's campaigns into a log: a file with one row a customer and week, the message and its outcomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.offers.logs.schema import COLUMNS
from envs.offers.populations.base import GivenCustomers, Sample
from envs.offers.populations.table_reader import read_table
from envs.offers.world.customers import CHURNED, UNIFORMS, CustomerState
from envs.offers.world.history import History, PassedWeek, SeenWeek
from envs.offers.world.transition import next_state
from envs.value_ranges import FLOAT32_MAX
from rlcore.offline.logged_dataset import LoggedDataset


class Campaigns:
    """Reads campaigns to customers of `env/population=customer_table`, in every week of a season, numbered from 1.

    These parameters name columns: `customer`, `week`, `offer` and `channel` (empty: nothing was sent), `bought` and
    `redeemed` (0 or 1), `margin` (money that a purchase brought before discounts, 0 without a purchase), `unsubscribed`
    (1 in the week in which a customer opted out), and `propensity` (of the decision taken; null where the log has
    none). `price` is the price of money at which policies are valued on the log.
    """

    def __init__(
        self,
        *,
        path: str | None,
        separator: str,
        customer: str,
        week: str,
        offer: str,
        channel: str,
        bought: str,
        redeemed: str,
        margin: str,
        unsubscribed: str,
        propensity: str | None,
        price: float,
    ):
        if path is None or not Path(path).is_file():
            raise ValueError(f"campaigns.path: expected the path of a CSV or Parquet file, got {path}")
        self.path, self.price = path, price
        texts = {"customer": customer, "offer": offer, "channel": channel}
        numbers = {
            "week": week,
            "bought": bought,
            "redeemed": redeemed,
            "margin": margin,
            "unsubscribed": unsubscribed,
            **({"propensity": propensity} if propensity else {}),
        }
        columns = read_table(
            path,
            separator,
            text=list(texts.values()),
            numbers=list(numbers.values()),
            rows="decisions",
            where="campaigns",
        )
        for key, name in (texts | numbers).items():
            if name not in columns:
                raise ValueError(f"{path}: no column '{name}' (campaigns.{key}); there are {', '.join(columns)}")
        self.names = texts | numbers
        self.columns = {key: columns[name] for key, name in self.names.items()}
        for key in numbers:
            self._refuse(key, np.isnan(self.columns[key]) & (key != "propensity"), "a number, got nothing")
        for key in ("bought", "redeemed", "unsubscribed"):
            self._refuse(key, ~np.isin(self.columns[key], (0, 1)), "0 or 1")
        self._refuse(
            "margin", np.abs(self.columns["margin"]) > FLOAT32_MAX, "a number that float32 can hold", shows=True
        )
        if "propensity" in self.columns:
            improbable = (self.columns["propensity"] <= 0) | (self.columns["propensity"] > 1)
            self._refuse("propensity", improbable, "a probability above 0, at most 1, or nothing", shows=True)

    def _refuse(self, key: str, wrong: np.ndarray, expected: str, *, shows: bool = False) -> None:
        """Raise ValueError, with the first row where `wrong` holds and, with `shows`, the number that stands there."""
        if wrong.any():
            row = wrong.argmax()
            got = f", got {self.columns[key][row]:g}" if shows else ""
            raise ValueError(f"{self.path}: row {row + 2}, column '{self.names[key]}': expected {expected}{got}")

    def _coded(self, key: str, names: list[str]) -> np.ndarray:
        """Number a column's texts by their position in `names`; an empty text that `names` lacks is −1."""
        code = {"": -1, **{name: k for k, name in enumerate(names)}}
        known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        self._refuse(key, np.array([x not in code for x in self.columns[key]]), f"one of {known}")
        return np.array([code[x] for x in self.columns[key]])

    def _laid(self, env) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Customers (rows of the table, [M]) and the file's columns by week, [T, M] each."""
        columns, catalogue, weeks = self.columns, env.world.catalogue, env.world.weeks
        customer = self._coded("customer", env.population.ids)
        self._refuse("customer", customer < 0, "an id, got nothing")
        sent = columns["offer"] != ""
        self._refuse("channel", sent != (columns["channel"] != ""), "a channel where there is an offer, and only there")
        offer = self._coded("offer", catalogue.offers[1:]) + 1
        channel = np.maximum(self._coded("channel", catalogue.channels), 0)
        self._refuse("week", ~np.isin(columns["week"], np.arange(1, weeks + 1)), f"a week from 1 to {weeks}")
        self._refuse(
            "redeemed",
            (columns["redeemed"] > 0) & ((columns["bought"] == 0) | ~sent),
            "1 only of an offer, with a purchase",
        )
        self._refuse("margin", (columns["bought"] == 0) & (columns["margin"] != 0), "0 without a purchase", shows=True)
        self._refuse("unsubscribed", (columns["unsubscribed"] > 0) & ~sent, "1 only in a week with a message")
        rows, at = np.unique(customer, return_inverse=True)
        place = np.full((weeks, len(rows)), -1)
        for k, (t, m) in enumerate(zip(columns["week"].astype(int) - 1, at)):
            if place[t, m] >= 0:
                self._refuse(
                    "week",
                    np.arange(len(at)) == k,
                    f"one row a customer and week, row {place[t, m] + 2} is of the same",
                )
            place[t, m] = k
        if (place < 0).any():
            t, m = np.argwhere(place < 0)[0]
            raise ValueError(
                f"{self.path}: customer '{env.population.ids[rows[m]]}' has no row of week {t + 1}: expected one of "
                f"each week, 1 to {weeks}, also where nothing was sent"
            )
        gone = np.cumsum(columns["unsubscribed"][place], 0) - columns["unsubscribed"][place] > 0
        late = np.zeros(len(at), dtype=bool)
        late[place[gone & sent[place]]] = True
        self._refuse("offer", late, "nothing, for the customer had unsubscribed")
        table = {
            "offer": offer,
            "channel": channel,
            **{key: columns[key] for key in columns if key not in ("customer", "week", "offer", "channel")},
        }
        return rows, {key: torch.tensor(x[place]) for key, x in table.items()}

    def __call__(self, env, seed: int) -> dict[str, LoggedDataset]:
        """Return the log of the customers of each split, with the observations of the environment's policies.

        No shop observes habit, fatigue and expectation. The world's transitions draw these states from what was sent
        and bought, with the parameters that the priors and the table give a customer.
        """
        population = env.population
        if not isinstance(population, GivenCustomers):
            raise ValueError("campaigns: expected the customers that they went to, as env/population=customer_table")
        rows, table = self._laid(env)
        generator, logs = torch.Generator().manual_seed(seed), {}
        for split, members in population.customers.items():
            sample = population.draw(len(members), generator, split)
            assert sample.row is not None  # given customers are rows of their table
            kept = torch.isin(sample.row, torch.tensor(rows))
            if not kept.any():
                raise ValueError(f"{self.path}: no customer of the {split} side of the table is in it")
            row = sample.row[kept]
            sample = Sample(
                customers=sample.customers[kept],
                features=sample.features[kept],
                state=CustomerState(*(x[kept] for x in sample.state)),
                row=row,
            )
            at = torch.searchsorted(torch.tensor(rows), row)
            logs[split] = self._log(env, sample, {key: x[:, at] for key, x in table.items()}, generator)
        return logs

    def _log(self, env, sample, table: dict[str, Tensor], generator: torch.Generator) -> LoggedDataset:
        world = env.world
        c = world.inhabit(sample.customers)
        state = sample.state
        contact_policy = env.contact_rules.policy(sample)
        n, weeks, seen, masks = len(c), world.weeks, [], []
        history = History.start(state.status, world.season.dtype)
        features = sample.features.to(world.season)
        memory = env.codec.start_memory(features)
        price = torch.full((n,), self.price)
        flat = world.catalogue.action_codec.encode(table["offer"], table["channel"])
        for t in range(weeks + 1):
            week = min(t, weeks - 1)
            options = contact_policy.options(history, env.codec.subscribed(state, memory), memory)
            masks.append(options.action_mask if t == weeks else options.action_mask.scatter(1, flat[t][:, None], True))
            seen.append(env.codec.encode(options.with_caps_left(features), state, memory, week, price, torch.zeros(n)))
            if t < weeks:
                contacted, bought, redeemed, left = (
                    table[key][t] > 0 for key in ("offer", "bought", "redeemed", "unsubscribed")
                )
                u = torch.rand(UNIFORMS, n, generator=generator)
                before = state
                state = next_state(
                    c, world, state, contacted, table["channel"][t], bought, redeemed, state.status == CHURNED, left, u
                )
                week_seen = SeenWeek(
                    table["offer"][t], table["channel"][t], bought, redeemed, left, table["margin"][t].to(features)
                )
                memory = env.codec.remember(memory, features, PassedWeek(week, week_seen, before, state))
                history = history.after(
                    state.status, world.catalogue, table["offer"][t], table["channel"][t], bought, redeemed
                )
        spend = world.catalogue.spend(table["offer"], table["channel"], table["redeemed"].to(world.season))
        profit = table["margin"].float() + world.reward.trips * table["bought"].float() - spend
        propensity = table.get("propensity", torch.full((weeks, n), torch.nan)).double()
        week = torch.arange(weeks).expand(n, weeks).flatten()
        zeros, whole_zeros = torch.zeros(n * weeks), torch.zeros_like(week)

        def by_customer(x: Tensor) -> Tensor:  # [T, N, …] to [N·T, …]: a customer's decisions are consecutive
            return x.transpose(0, 1).flatten(0, 1)

        return LoggedDataset(
            nvec=env.nvec,
            static_dim=env.static_dim,
            policies=("campaigns",),
            names=COLUMNS,
            decision=torch.arange(n * weeks),
            unit=sample.row.repeat_interleave(weeks),
            episode=whole_zeros,
            step=week,
            policy=whole_zeros,
            obs=by_customer(torch.stack(seen[:-1])),
            action_mask=by_customer(torch.stack(masks[:-1])),
            action=by_customer(flat),
            propensity=by_customer(propensity),
            price=zeros + self.price,
            reward=by_customer(profit),
            cost=by_customer(spend),
            terminal_value=zeros,
            outcomes={
                "trips": by_customer(table["bought"].float()),
                "redeemed": by_customer(table["redeemed"].float()),
            },
            next_obs=by_customer(torch.stack(seen[1:])),
            next_action_mask=by_customer(torch.stack(masks[1:])),
            terminated=week == weeks - 1,
            truncated=zeros > 0,
        )

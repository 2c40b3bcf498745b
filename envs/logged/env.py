"""An environment that is known by its log alone: contexts, actions and rewards by the names of the log's columns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from envs.base import VectorEnv
from envs.logged.actions import ActionNames, to_text
from envs.logged.columns import LogColumns, in_order
from envs.offers.populations.base import hash_uniform
from envs.offers.populations.feature_transform import FeatureTransform
from envs.tables.column_kinds import Columns
from rlcore.offline.logged_dataset import FIRST_ROW, ColumnNames, LoggedDataset, check_rows, named_rows

RESERVED = ("net", "estimator", "estimators", "policy_less", "effective", "elsewhere", "group")  # keys of reports' rows


class LoggedEnv(VectorEnv):
    """Decisions of a CSV or Parquet file, one a row; nothing is simulated.

    These parameters name columns: `actions`, one for each part of an action; `reward`; and, null where the file has
    none, `customer` (whose decisions stay together), `week` (the order of a customer's decisions; null: each decision
    stands alone), `rule` (which rule decided), `propensity` and `cost`, which is charged at `price`. All columns but
    these and those in `ignore` are features by their own names; so are those of `customer_table`, a file of its own
    with `path`, `separator` and `id`. Numbers, dates and texts become features as those of a customer table
    (FeatureTransform), fitted on the training side. Possible is what the training side has, and what was done, where
    the conditions `allowed` {column of an action: {choice: condition}} allow it. A hash of the customer, or of all that
    the row says, decides the side; `test_share` is kept from learning. Without customers all rows of another file are
    on the test side, but for those that were learned from. A row without a reward is refused.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        path: str | None,
        separator: str,
        actions: list,
        reward: str,
        customer: str | None,
        week: str | None,
        rule: str | None,
        propensity: str | None,
        cost: str | None,
        price: float,
        customer_table: dict,
        allowed: dict,
        text: list,
        ignore: list,
        reference_date: str | None,
        min_level_count: int,
        clip_margin: float,
        test_share: float,
        split_salt: int,
        num_agents: int,
        evaluation: Callable,
    ):
        self.device, self.num_agents, self.evaluation = torch.device(device), num_agents, evaluation
        self.path, self.price = path, price
        self.roles: dict[str, str] = {
            key: name
            for key, name in (
                ("reward", reward),
                ("customer", customer),
                ("week", week),
                ("rule", rule),
                ("propensity", propensity),
                ("cost", cost),
            )
            if name
        }
        for key, name in self.roles.items():
            if key in ("reward", "cost") and name in RESERVED:
                raise ValueError(
                    f"env.{key}: expected a column of another name than {', '.join(RESERVED)}, which reports use, got "
                    f"'{name}'"
                )
        self.action_columns, self.allowed, self.ignore = list(actions), allowed, ignore
        self.test_share, self.split_salt = test_share, split_salt
        if not self.action_columns:
            raise ValueError("env.actions: expected the columns of an action, as in env.actions=[offer,channel]")
        self.read = LogColumns(
            separator=separator,
            roles=self.roles,
            actions=self.action_columns,
            text=text,
            ignore=ignore,
            customer_table=customer_table,
            reference_date=reference_date,
        )
        self.names = ColumnNames(
            unit=customer or "row", episode="episode", step=week or "step", reward=reward, cost=cost or "cost"
        )
        if path is None:
            raise ValueError("log: expected the path of the log that env=log is about, as in log=log.csv")
        self.transform: FeatureTransform | None = None
        self.obs_dim, self.nvec = 1, (1,)
        self.hashed: list[str] = []  # columns of a row's hash, where no customer is named
        self.learned = torch.zeros(0, dtype=torch.float64)  # hashes of the rows that were learned from
        if Path(
            path
        ).is_file():  # else `load_fitted` brings what was fitted to it, or `read_log` says that it is missing
            raw = self.read(path)
            columns = self.read.in_days(raw)
            features = self._features(columns)
            self.hashed = sorted({*self.roles.values(), *self.action_columns, *features})
            train = np.flatnonzero(self._is_of(raw, "train"))
            if not features:
                raise ValueError(
                    f"{path}: expected columns of features beside those that env names, got {', '.join(columns)}"
                )
            transform = FeatureTransform.fit(features, train, min_level_count, clip_margin, path, "env")
            self._use(transform, ActionNames.fit(columns, self.action_columns, path, train))

    def _use(self, transform: FeatureTransform, action_names: ActionNames) -> None:
        self.transform, self.action_names = transform, action_names
        self.obs_names = transform.names
        self.obs_dim = len(transform.names)
        self.nvec = action_names.nvec

    # ── columns ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _features(self, columns: Columns) -> Columns:
        """Return the columns that are features."""
        taken = {*self.roles.values(), *self.action_columns, *self.ignore}
        return {name: column for name, column in columns.items() if name not in taken}

    def _is_of(self, raw: Columns, split: str) -> np.ndarray:
        """Tell which rows of a file are of a side, bool [R]; rows that are to be learned from are noted."""
        if "customer" in self.roles:
            units = raw[self.roles["customer"]].tolist()
            distinct = list(dict.fromkeys(units))
            side = dict(zip(distinct, (hash_uniform(distinct, self.split_salt) < self.test_share).tolist()))
            is_test = np.array([side[unit] for unit in units])
            return is_test if split == "test" else ~is_test
        found = self._hashes(raw)
        if split == "test":
            return ~torch.isin(found, self.learned).numpy()
        is_train = found >= self.test_share
        self.learned = torch.cat((self.learned, found[is_train])).unique()
        return is_train.numpy()

    def _hashes(self, raw: Columns) -> Tensor:
        """Return a number in [0, 1) for what each row says, [R], whatever the order of rows and columns."""
        texts = [to_text(raw[name]).tolist() for name in self.hashed if name in raw]
        return hash_uniform(("\x1f".join(row) for row in zip(*texts)), self.split_salt)

    def action_name(self, index: int) -> str:
        """Name the action of a flat index, for tables."""
        return self.action_names.name(index)

    # ── the log ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def read_log(
        self, path: str, split: str, transform: Callable[[LoggedDataset], LoggedDataset] | None = None
    ) -> LoggedDataset:
        """Read the decisions of a side; features, actions and propensities are found by their names."""
        raw = self.read(path)
        assert self.transform is not None  # fitted by the constructor, which found the file too, or by `load_fitted`
        kept = np.flatnonzero(self._is_of(raw, split))
        if not len(kept):
            raise ValueError(f"{path}: no decision is on the {split} side (env.test_share)")
        columns = self.read.in_days(raw)
        names, unit = self._units(columns, len(columns[self.roles["reward"]]))
        columns = {name: column[kept] for name, column in columns.items()}
        features = self.transform(self._features(columns), path)
        clipped = self.transform.describe_clipped(self._features(columns))
        if clipped:
            print(f"warning: {path}: clipped to the range of training: {clipped} decisions", file=sys.stderr)
        dataset = self._dataset(columns, features.float(), kept + FIRST_ROW, unit[kept], path)
        dataset = replace(dataset, unit_names=names).to(self.device)
        return transform(dataset) if transform else dataset

    def _units(self, columns: Columns, rows: int) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the customers' names, and each row's number among them, [R]; without customers a row is a unit.

        Both sides of a file number their customers alike.
        """
        if "customer" not in self.roles:
            return (), np.arange(rows)
        names, unit = np.unique(columns[self.roles["customer"]].astype(str), return_inverse=True)
        return tuple(names.tolist()), unit

    def has_sides(self, path: str) -> bool:
        """Tell that `read_log` knows the decisions of training."""
        return True

    def _dataset(self, columns: Columns, obs: Tensor, row: np.ndarray, unit: np.ndarray, path: str) -> LoggedDataset:
        """Return decisions [R] of the rows [R] of a file, and of units [R]."""
        rows = len(obs)
        action = self.action_names.encode(columns, path, row)
        mask = self.action_names.mask(columns, self.allowed, action)
        if (broken := ~mask[np.arange(rows), action]).any():
            raise ValueError(
                f"{path}: {named_rows(torch.from_numpy(broken), torch.from_numpy(row))}: "
                f"'{self.action_names.name(action[broken][0])}' is not possible by env.allowed"
            )
        has_weeks = "week" in self.roles
        order, step, follows = in_order(columns, self.roles.get("week"), unit, row, path)
        episode = np.zeros(rows, dtype=np.int64) if has_weeks else np.arange(rows)

        policies, policy = (Path(path).stem,), np.zeros(rows, dtype=np.int64)
        if "rule" in self.roles:
            names, policy = np.unique(columns[self.roles["rule"]].astype(str), return_inverse=True)
            policies = tuple(names.tolist())

        def column(key: str, default: float) -> Tensor:
            values = columns[self.roles[key]] if key in self.roles else np.full(rows, default)
            return torch.from_numpy(values[order])

        at = torch.from_numpy(order)
        then = torch.where(torch.from_numpy(follows), torch.arange(rows) + 1, torch.arange(rows))
        obs, action_mask = obs[at], torch.from_numpy(mask)[at]
        ends = torch.from_numpy(~follows)
        zeros = torch.zeros(rows)
        dataset = LoggedDataset(
            nvec=self.nvec,
            static_dim=0,
            policies=policies,
            names=self.names,
            row=torch.from_numpy(row[order]),
            unit=torch.from_numpy(unit[order]),
            episode=torch.from_numpy(episode),
            step=torch.from_numpy(step),
            policy=torch.from_numpy(policy[order]),
            obs=obs,
            action_mask=action_mask,
            action=torch.from_numpy(action[order]),
            propensity=column("propensity", np.nan).double(),
            price=zeros + self.price,
            reward=column("reward", 0.0).float(),
            cost=column("cost", 0.0).float(),
            terminal_value=zeros,
            next_obs=obs[then] if has_weeks else None,
            next_action_mask=action_mask[then] if has_weeks else None,
            terminated=ends,
            truncated=torch.zeros(rows, dtype=torch.bool),
        )
        check_rows(dataset, path)
        return dataset

    # ── nothing is simulated ────────────────────────────────────────────────────────────────────────────────────────
    def _refuse_to_act(self) -> NoReturn:
        raise ValueError("env=log: nothing is simulated: expected algo=bandit, bcq or cql, which learn from log=PATH")

    def reset(self) -> tuple[Tensor, Tensor]:
        """Raise ValueError: a log can't be acted in."""
        self._refuse_to_act()

    def step(self, action: Tensor) -> NoReturn:
        """Raise ValueError: a log can't be acted in."""
        self._refuse_to_act()

    def state_dict(self) -> dict[str, Any]:
        """Return the names of actions and the transform of features."""
        assert self.transform is not None
        return {
            "transform": self.transform.state_dict(),
            "actions": self.action_names._asdict(),
            "hashed": self.hashed,
            "learned": self.learned,
        }

    def load_fitted(self, state: dict[str, Any]) -> None:
        """Use the actions and features that a policy was trained on, and know the rows that it has learned from."""
        self._use(FeatureTransform(state["transform"]), ActionNames(**state["actions"]))
        self.hashed, self.learned = state["hashed"], state["learned"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Use the actions and features of the run that goes on."""
        self.load_fitted(state)

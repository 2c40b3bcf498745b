"""The shop's own rule as one more policy that a log values: a table of what the rule would have decided.

A row of the table is a decision. It is joined to the log by the customer, and by the week where the log has weeks; row
by row, where the log names no customers or the table is the log itself, with further columns.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.logged.actions import ActionNames, to_text
from envs.logged.env import LoggedEnv
from envs.offers.env import OffersEnv
from envs.tables.table_reader import read_table
from rlcore.offline.logged_dataset import FIRST_ROW, LoggedDataset

NAME = "shop's own rule"  # the row in tables
WHERE = "shop_rule"  # the part of the configuration that names the table, in messages
Key = tuple[str, ...]  # what names a decision: customer, week


class DecisionNames(NamedTuple):
    """How a log names its N decisions and their actions."""

    columns: tuple[str, ...]  #: that name a decision, the customer first; empty: its row does
    keys: list[Key]  #: of the decisions
    rows: int  #: number of rows of the log
    actions: ActionNames
    texts: tuple[str, ...]  #: columns of actions that are text even where they look like numbers
    has_nothing: bool  #: whether an action without a name, of flat index 0, is among the actions


def with_shop_rule(
    dataset: LoggedDataset, env: Any, log: str, shop_rule: dict[str, Any]
) -> tuple[LoggedDataset, list[str]]:
    """Return decisions of the file `log` with the rule among their alternatives, and warnings.

    `shop_rule` has the keys of conf/evaluate.yaml. Raises ValueError, with file and column, where the table does not
    say what the rule would have decided.
    """
    path = shop_rule["decisions"]
    if isinstance(env, LoggedEnv):
        is_log = Path(path).resolve() == Path(log).resolve()
        names = names_by_column(dataset, env, log, by_row=is_log or "customer" not in env.roles)
    elif isinstance(env, OffersEnv):
        names = names_by_week(dataset, env)
    else:
        raise ValueError(f"{WHERE}.decisions: expected a policy of env=log or of a shop's customers")
    own = list(shop_rule["columns"]) or list(names.actions.columns)
    stated = read_decisions(path, shop_rule["separator"], own, names)
    found = np.array([stated.get(key, -1) for key in names.keys])
    absent = found < 0
    by = " and ".join(names.columns) or "row"
    if absent.all():
        raise ValueError(f"{path}: expected decisions that are in {log}, by {by}, got none")
    if absent.any() and not names.has_nothing:
        key = ", ".join(names.keys[int(absent.argmax())])
        raise ValueError(f"{path}: expected each decision that is valued, by {by}, got none of {key}")
    wanted = torch.from_numpy(found.clip(0)).to(dataset.action)
    warning = f"{path} lacks {int(absent.sum()):,} of {len(found):,} decisions: the {NAME} does nothing there"
    return replace(dataset, alternatives={**dataset.alternatives, NAME: wanted}), [warning] if absent.any() else []


def names_by_week(dataset: LoggedDataset, env: OffersEnv) -> DecisionNames:
    """Name decisions by customer and week, counted from the log's first, and actions by offer and channel."""
    week = (dataset.episode * env.world.weeks + dataset.step).tolist()
    catalogue = env.world.catalogue
    columns = ("offer", "channel")
    return DecisionNames(
        columns=("customer", "week"),
        keys=list(zip(dataset.names_of_units(dataset.unit), map(str, week))),
        rows=0,  # rows of the log play no part
        actions=ActionNames(columns, (("", *catalogue.offers[1:]), tuple(catalogue.channels)), ()),
        texts=columns,
        has_nothing=True,
    )


def names_by_column(dataset: LoggedDataset, env: LoggedEnv, log: str, *, by_row: bool) -> DecisionNames:
    """Name decisions by the log's own columns of customers and weeks, or by their rows."""
    roles = () if by_row else ("customer", "week")
    columns = tuple(env.roles[role] for role in roles if role in env.roles)
    names = env.action_names
    table = read_table(
        log,
        env.read.separator,
        text=list(columns[:1]),
        numbers=[],
        rows="decisions",
        where="env",
        only=[*columns, *names.columns],
    )
    every = keys_of(table, columns)
    return DecisionNames(
        columns=columns,
        keys=[every[k] for k in (dataset.row - FIRST_ROW).tolist()],
        rows=len(every),
        actions=names,
        texts=tuple(name for name in names.columns if name in env.read.text),
        has_nothing=all("" in choices for choices in names.choices),
    )


def read_decisions(path: str, separator: str, own: list[str], names: DecisionNames) -> dict[Key, int]:
    """Read the rule's table, {what names a decision: flat action}; its columns of actions are `own`."""
    if len(own) != len(names.actions.columns):
        raise ValueError(
            f"{WHERE}.columns: expected a column for each of {', '.join(names.actions.columns)}, got {own}"
        )
    texts = [column for column, name in zip(own, names.actions.columns) if name in names.texts]
    table = read_table(
        path,
        separator,
        text=[*names.columns[:1], *texts],
        numbers=[],
        rows="decisions",
        where=WHERE,
        only=[*names.columns, *own],
    )
    keys = keys_of(table, names.columns)
    if not names.columns and len(keys) != names.rows:
        raise ValueError(
            f"{path}: expected the log's {names.rows:,} rows, since it names no customers; got {len(keys):,}"
        )
    parts = {name: to_text(table[name]) for name in own}
    if names.has_nothing:  # where no part of an action is named, nothing is done
        is_blank = np.logical_and.reduce([part == "" for part in parts.values()])
        first = {name: choices[0] for name, choices in zip(own, names.actions.choices)}
        parts = {name: np.where(is_blank, first[name], part) for name, part in parts.items()}
    actions = names.actions._replace(columns=tuple(own)).encode(parts, path, np.arange(len(keys)) + FIRST_ROW)
    stated: dict[Key, int] = {}
    for k, (key, action) in enumerate(zip(keys, actions.tolist())):
        if stated.setdefault(key, action) != action:
            raise ValueError(f"{path}: row {k + FIRST_ROW}: another decision of {', '.join(key)} stands above")
    return stated


def keys_of(table: dict[str, np.ndarray], columns: tuple[str, ...]) -> list[Key]:
    """Return what names each row of a table: the texts of the columns, or the row's number where there are none."""
    if columns:
        return list(zip(*(to_text(table[name]).tolist() for name in columns)))
    rows = len(next(iter(table.values())))
    return [(str(k),) for k in range(rows)]

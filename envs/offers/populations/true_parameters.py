"""A file of customers' parameters θ, one row a customer, such as the truth of a made-up shop."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from envs.offers.world.customers import Customers
from envs.tables.column_kinds import Columns
from envs.tables.table_reader import check_ids, read_table

ID = "customer"  # column of the customers' ids
WHERE = "env.population.parameters"  # part of the configuration that names the file, in messages


def parameter_names(channels: tuple[str, ...] | list[str]) -> list[str]:
    """Return the columns of θ: a name of each parameter, and omega.CHANNEL for each channel's attention."""
    single = [f.name for f in fields(Customers) if f.name != "omega"]
    return [*single, *(f"omega.{name}" for name in channels)]


def parameter_table(ids: list[str], c: Customers, channels: tuple[str, ...] | list[str]) -> list[dict[str, str]]:
    """Return the rows of such a file for N customers."""
    single = [getattr(c, f.name) for f in fields(Customers) if f.name != "omega"]
    columns = [x.tolist() for x in (*single, *c.omega)]
    names = parameter_names(channels)
    return [
        {ID: name, **{key: f"{column[k]:.6g}" for key, column in zip(names, columns)}} for k, name in enumerate(ids)
    ]


def read_parameters(path: str, separator: str, ids: list[str], channels: tuple[str, ...] | list[str]) -> Customers:
    """Read θ of the customers `ids` [H], in their order, float64; the file may have further customers.

    Raises ValueError where a customer or a column lacks, or an entry is no number.
    """
    names = parameter_names(channels)
    columns: Columns = read_table(
        path, separator, text=[ID], numbers=names, rows="customers", where=WHERE, only=[ID, *names]
    )
    check_ids(columns[ID].tolist(), ID, path)
    row = {name: k for k, name in enumerate(columns[ID].tolist())}
    unknown = next((name for name in ids if name not in row), None)
    if unknown is not None:
        raise ValueError(f"{path}: no parameters of customer '{unknown}' ({WHERE})")
    at = np.array([row[name] for name in ids])
    theta = {}
    for name in names:
        column = columns[name][at]
        if not np.isfinite(column).all():
            wrong = int(at[int((~np.isfinite(column)).argmax())])
            raise ValueError(f"{path}: row {wrong + 2}, column '{name}': expected a number")
        theta[name] = torch.from_numpy(column.astype(np.float64))
    omega = torch.stack([theta[f"omega.{name}"] for name in channels])
    return Customers(omega=omega, **{f.name: theta[f.name] for f in fields(Customers) if f.name != "omega"})

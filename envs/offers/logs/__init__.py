"""Logs: a shop's sends, the columns of simulated logs, and variance reduction of logged rewards."""

from envs.offers.logs.schema import COLUMNS

__all__ = ["COLUMNS"]

"""Logs of the offers world: their columns, a shop's campaigns as a log, and variance reduction of logged rewards."""

from envs.offers.logs.schema import COLUMNS

__all__ = ["COLUMNS"]

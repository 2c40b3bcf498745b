"""Logged decisions: datasets and their files, and Q-learning on them."""

from rlcore.offline.adjusted_rewards import AdjustedRewards
from rlcore.offline.deduplicated import DeduplicatedMatrix
from rlcore.offline.logged_dataset import ColumnNames, LoggedDataset

__all__ = ["AdjustedRewards", "ColumnNames", "DeduplicatedMatrix", "LoggedDataset"]

"""Names of a log's fields in files, tables and messages, in the words of marketing.

Columns, of an action of K heads: customer (number or text), season, week, policy; price (of money);
feature_0 … (what holds all season), state_0 … (the rest of what was observed), next_state_0 …; valid_I_J … and
next_valid_I_J … (one a combination of the heads); action_0 … action_K-1; propensity of the action taken, and of all
combinations prob_I_J … where known; profit, trips, redeemed, spend as they came true; terminal, the value of the state
after the last decision; terminated, truncated. Only customer, action_*, profit, valid_* and some feature_* or state_*
are needed; with next_*, terminated too.
"""

from __future__ import annotations

from rlcore.offline.logged_dataset import ColumnNames

COLUMNS = ColumnNames(
    unit="customer",
    episode="season",
    step="week",
    reward="profit",
    cost="spend",
    terminal_value="terminal",
    outcomes=("trips", "redeemed"),
)

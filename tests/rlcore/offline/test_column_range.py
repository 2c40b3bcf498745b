"""What training saw of each column, and logged observations held to it."""

from __future__ import annotations

import torch

from rlcore.offline.column_range import ColumnRange, clip_static_columns
from small_offers import random_log


def test_limits_are_the_range_of_all_rows_and_a_share_of_its_width():
    seen = ColumnRange(3, torch.device("cpu"))
    low, high = seen.limits(0.5)
    assert (low == -torch.inf).all() and (high == torch.inf).all()
    seen.update(torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, -1.0]]))
    seen.update(torch.tensor([[4.0, 5.0, 0.0]]))
    low, high = seen.limits(0.5)
    assert low.tolist() == [-2, 5, -2] and high.tolist() == [6, 5, 2]
    resumed = ColumnRange(3, torch.device("cpu"))
    resumed.update(torch.tensor([[9.0, 5.0, 0.0]]))
    resumed.load_state_dict(seen.state_dict())
    assert resumed.low.tolist() == [0, 5, -1] and resumed.high.tolist() == [9, 5, 1]


def test_static_columns_are_clipped_and_counted_by_unit_and_nothing_else_changes():
    env, log = random_log(20)
    names = [f"feature_{k}" for k in range(env.static_dim)]
    low, high = env.static_limits()
    assert clip_static_columns(log, (low, high), names)[0] is log  # the environment has seen these customers
    far = log.obs.clone()
    rows = (log.unit == 3) | (log.unit == 5)
    far[rows, 2] = 1e30
    changed = type(log)(**{**vars(log), "obs": far})
    clipped, sentence = clip_static_columns(changed, (low, high), names)
    assert sentence == f"clipped to the range of training: 'feature_2' ({low[2]:g} to {high[2]:g}) of 2 customers"
    expected = log.obs.clone()
    expected[rows, 2] = high[2]
    assert torch.equal(clipped.obs, expected)
    assert torch.equal(clipped.next_obs[:, : env.static_dim], expected[:, : env.static_dim])
    assert torch.equal(clipped.next_obs[:, env.static_dim :], log.next_obs[:, env.static_dim :])

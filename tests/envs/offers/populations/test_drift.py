"""Drift of a customer table: the index by its definition, what chance alone does, and what has moved."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.offers.populations.drift import describe_drift, profile, shares, stability_index


def test_the_index_is_its_definition():
    before, now = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    expected = sum((a - b) * math.log(a / b) for a, b in zip(now, before))
    assert stability_index(before, now) == pytest.approx(expected)
    assert stability_index(before, before) == 0.0


def test_shares_count_levels_gaps_and_what_is_new():
    column = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    assert shares(column, [2.0]).tolist() == [0.4, 0.4, 0.2]  # up to 2, above, no entry
    assert shares(np.array(["a", "b", "z", "a"]), ["a", "b"]).tolist() == [0.5, 0.25, 0.25]


def test_only_what_moved_is_named():
    rng = np.random.default_rng(0)
    n = 2000
    old = {"age": rng.normal(50, 10, n), "tier": rng.choice(["gold", "basic"], n), "visits": rng.poisson(3, n) * 1.0}
    new = {"age": rng.normal(42, 10, n), "tier": rng.choice(["gold", "basic"], n), "visits": rng.poisson(3, n) * 1.0}
    rows = np.arange(n)
    found = describe_drift(profile(old, rows), new, rows)
    assert [x.split()[0] for x in found] == ["age"] and 0.3 < float(found[0].split()[1]) < 1.2
    assert describe_drift(profile(old, rows), old, rows) == []


def test_few_customers_do_not_move_by_chance():
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        old, new = ({"x": rng.normal(size=60)} for _ in range(2))
        alarms += bool(describe_drift(profile(old, np.arange(60)), new, np.arange(60)))
    assert alarms <= 4

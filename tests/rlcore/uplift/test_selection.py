"""Which learner cross-validation chooses: the best, or the first that is level with it."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from rlcore.ope.outcome_models import Linear
from rlcore.uplift.meta_learners import S, T
from rlcore.uplift.selection import Experiment, choose, cross_validate, first_level, fit_effects


def test_the_first_learner_within_a_standard_error_of_the_best_is_chosen():
    by_fold = {"far": [0.0, 0.0, 0.0], "level": [0.3, 0.0, 0.1], "best": [0.1, 0.3, 0.1], "same": [0.1, 0.3, 0.1]}
    lost = [a - b for a, b in zip(by_fold["best"], by_fold["level"])]
    error = statistics.stdev(lost) / 3**0.5
    share = statistics.fmean(lost) / error
    assert 0 < share < 1
    assert first_level(by_fold, 0.0) == "best"
    assert first_level(by_fold, 0.99 * share) == "best"
    assert first_level(by_fold, 1.01 * share) == "level"
    assert first_level(by_fold, 1.0) == "level"
    assert first_level(by_fold, 1e6) == "far"


def test_logistic_learners_come_first_where_outcomes_are_0_or_1_and_not_at_all_elsewhere():
    analyst = instantiate(composed(name="uplift").ab_test, _convert_="all")
    binary = torch.tensor([0.0, 1.0, 1.0])
    logistic = ["S_logistic", "S_logistic_1000", "S_logistic_3000", "T_logistic"]
    assert list(analyst.usable(binary))[:4] == logistic
    assert next(iter(analyst.usable(2 * binary))) == "S_linear"


def test_the_bench_of_any_test_values_arms_and_compares_with_peers(tmp_path, capsys):
    for package in ("sklift", "pyarrow", "pandas"):
        pytest.importorskip(package)
    import pandas

    generator = torch.Generator().manual_seed(0)
    n = 1500
    kind = torch.randint(2, (n,), generator=generator)
    arm = torch.multinomial(torch.tensor([0.4, 0.4, 0.2]), n, True, generator=generator)
    chance = torch.where((kind == 1) & (arm > 0), 0.4, 0.1)
    reply = (torch.rand(n, generator=generator) < chance).int()
    names = ["none", "letter", "call"]
    frame = pandas.DataFrame({"kind": kind, "reply": reply, "arm": [names[k] for k in arm.tolist()]})
    frame.to_parquet(tmp_path / "test.parquet")
    config = composed(
        "benchmark=uplift/rct",
        f"benchmark.table.path={tmp_path / 'test.parquet'}",
        "benchmark.table.treatment=arm",
        "benchmark.table.control=none",
        "benchmark.table.outcomes=[reply]",
        "benchmark.splits=2",
        "benchmark.replications=20",
        "benchmark.analyst.folds=2",
        *(f"~benchmark.analyst.learners.{kind}_network" for kind in ("T", "X")),
        name="bench",
    ).benchmark
    bench = instantiate(config, _convert_="all")
    found = bench(tmp_path, torch.device("cpu"), 0)
    for k, name in enumerate(names):
        mean = frame.reply[(arm == k).numpy()].mean()
        row = found["arms"][name]
        assert row["ips"][0] == pytest.approx(mean, abs=1e-6) and row["snips"][0] == pytest.approx(mean, abs=1e-6)
        assert row["dr"][0] == pytest.approx(mean, abs=row["half_width"] / 2)
    rows = found["rows"]
    assert {"two models, C = 0.003", "interactions, C = 0.003", "chosen of ours", "S_logistic"} < set(rows)
    assert all(row["qini"][0] > 0.1 for row in rows.values()) and len(found["chosen"]) == 2
    assert "ours less it" in capsys.readouterr().out
    with pytest.raises(ValueError, match="benchmark.arms: expected some of letter, call|call, letter"):
        bench(tmp_path, torch.device("cpu"), 0, arms=["fax"])


def experiment(n: int, outcome: torch.Tensor, action: torch.Tensor, unit: torch.Tensor | None = None) -> Experiment:
    """A test with one column, which says nothing."""
    obs = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    share = action.bincount().double() / n
    return Experiment(torch.arange(n) if unit is None else unit, obs, action, outcome.float(), share[action])


LINEAR = {
    "T": T(model=Linear(ridge=30.0, own=True, scaled=False)),
    "S": S(model=Linear(ridge=1.0, own=True, scaled=False)),
}


def test_folds_in_which_nobody_replied_count_as_random_orders():
    """Three replies in five folds: at least two folds have none."""
    n = 100
    action, reply = torch.arange(n) % 2, torch.zeros(n)
    reply[[0, 1, 2]] = 1
    fold = torch.arange(n) // 20
    found = cross_validate(LINEAR["T"], experiment(n, reply, action), 2, fold, 0)
    assert found[1:] == [0.0] * 4 and math.isfinite(found[0])
    chosen = choose(LINEAR, experiment(n, reply, action), 2, fold, 0, 1.0)
    assert chosen.name in LINEAR and chosen.validated["T"] == pytest.approx(found[0] / 5)


def test_where_a_fold_has_all_of_an_arm_the_first_learner_is_chosen():
    n = 60
    action = torch.zeros(n, dtype=torch.long)
    action[20:] = torch.arange(40) % 2
    action[[0, 1]] = 2
    chosen = choose(LINEAR, experiment(n, torch.arange(n) % 3 == 0, action), 3, torch.arange(n) // 20, 0, 1.0)
    assert chosen.name == "T" and all(math.isnan(x) for x in chosen.validated.values())
    assert chosen.effects(torch.zeros(4, 1)).shape == (4, 3)


def test_a_learner_gets_the_units_of_the_rows():
    given = []

    class Recording(T):
        def __call__(self, obs, action, outcome, actions, generator, propensity=None, cluster=None):
            given.append(cluster)
            return super().__call__(obs, action, outcome, actions, generator, propensity, cluster)

    unit = torch.tensor([7, 7, 3, 3, 9, 9, 1, 1])
    action = torch.tensor([0, 1] * 4)
    fit_effects(Recording(model=Linear(ridge=1.0, own=True, scaled=False)), experiment(8, action, action, unit), 2, 0)
    assert given[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]

"""Which learner cross-validation chooses: the best, or the first that is level with it."""

from __future__ import annotations

import statistics

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from rlcore.uplift.selection import first_level


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

"""The benchmarks of the filter of the hidden state, with few customers."""

from __future__ import annotations

import math

import pytest
import torch
from hydra.utils import instantiate

from configs import composed

CPU = torch.device("cpu")


@pytest.mark.long
def test_what_is_known_grows_and_the_clock_runs(tmp_path, capsys):
    small = ["benchmark.known.population.reference_size=500", "benchmark.estimated.population.reference_size=500"]
    sizes = ["benchmark.customers=300", "benchmark.reference_size=800"]
    config = composed("benchmark=learning/belief", *small, *sizes, name="bench").benchmark
    found = instantiate(config, _convert_="all")(tmp_path, CPU, 0)
    for name in ("true θ", "θ̂"):
        weeks = found[name]["knowledge"]
        assert len(weeks) == 13 and abs(weeks[0]["entropy"] - math.log(12)) < 0.02 and weeks[0]["habit"] is None
        assert weeks[-1]["entropy"] < weeks[0]["entropy"] - 0.5
        assert weeks[-1]["habit"] > 0.6 and weeks[-1]["fatigue"] > 0.95
        assert [len(x) for x in found[name]["deciles"].values()] == [10, 10, 10]
    config = composed("benchmark=speed/filtering", "benchmark.customers=[50,100]", "benchmark.repeats=1", name="bench")
    rows = instantiate(config.benchmark, _convert_="all")(tmp_path, CPU, 0)["filter"]
    assert [row["customers"] for row in rows] == [50, 100] and rows[0]["forward_seconds"] > 0
    assert "known at the start of a week" in capsys.readouterr().out

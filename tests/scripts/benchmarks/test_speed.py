"""The speed benchmarks: counts by hand on small products, and complete tables of scaling and roofline."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from scripts.benchmarks.speed import roofline

CPU, SMALL = torch.device("cpu"), "benchmark.env.population.reference_size=500"


def bench(name, *overrides):
    return instantiate(composed(f"benchmark={name}", *overrides, name="bench").benchmark, _convert_="all")


def test_kernels_bytes_and_operations_are_those_counted_by_hand():
    x, y = torch.ones(5, 7), torch.ones(7, 3)
    with roofline.Count() as count:
        (x.T.T @ y).add_(1.0).view(-1)  # a product, and a sum in place; views move nothing
    assert (count.kernels, count.operations, count.elements) == (2, 2 * 5 * 7 * 3, 15)
    assert count.bytes == 4 * (35 + 21 + 15) + 4 * (15 + 15)
    assert roofline.size(torch.ones(1).expand(1000)) == 4


@pytest.mark.slow
def test_the_update_has_the_products_of_its_networks():
    """Forward, to the weights and, but for the first layer, to the inputs: two operations a number and weight."""
    made = bench(
        "speed/roofline",
        "benchmark.env.num_agents=8",
        SMALL,
        "benchmark.algo.minibatches=1",
        "benchmark.algo.epochs=1",
        "benchmark.algo.auxiliary=null",
    )
    ppo = made.keywords["algo"](made.keywords["env"](CPU, 0), 0)
    batch = ppo.compute_advantages(ppo.collect())
    with roofline.Count() as count:
        ppo.update(batch)
    d, h, pairs = ppo.env.obs_dim, 64, 30
    weights = [d * h, h * h, h * pairs, d * h, h * h, h]
    once = sum(3 * w for w in weights) - 2 * d * h
    heads = 2 * 2 * pairs * 11 * (h + 1)  # from heads to pairs, and back, once a minibatch: rows are 30 × 11
    assert count.operations == pytest.approx(2 * once * len(batch.obs) + heads, rel=1e-3)


@pytest.mark.long
def test_both_come_out_whole(tmp_path, capsys):
    made = bench(
        "speed/roofline",
        "benchmark.env.num_agents=8",
        SMALL,
        "benchmark.algo.minibatches=2",
        "benchmark.repeats=1",
        "benchmark.ceiling={triad: 1000, matmul: 8, repeats: 1}",
    )
    found = made(tmp_path, CPU, 0)
    assert list(found["stages"]) == ["environment", "collect", "advantages", "update"]
    for row in found["stages"].values():
        assert row["floor_seconds"] == pytest.approx(row["share_of_ceiling"] * row["seconds"]) and row["kernels"] > 0
    made = bench(
        "speed/scaling",
        "benchmark.customers=[{n: 20, evaluations: 2, season: true}]",
        "benchmark.weeks={lengths: [3], customers: 8}",
        "benchmark.algo.minibatches=2",
        SMALL,
        "benchmark.worlds={numbers: [2], repeats: 1}",
        "benchmark.processes.numbers=[]",
    )
    found = made(tmp_path, CPU, 0)
    (row,) = found["customers"]
    assert row["customers"] == 20 and row["evaluations"] == 2 and row["score"] < 1 and row["tables_kept"]
    assert found["weeks"][0]["steps"] == 3 * 8 and found["worlds"][0]["steps"] == 2 * 64
    assert "customers" in capsys.readouterr().out

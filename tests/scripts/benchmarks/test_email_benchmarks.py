"""The benchmark of reward models over random splits, on few mails."""

from __future__ import annotations

import random

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from mail_files import made_up_text, write_csv
from scripts.benchmarks.learning.reward_model_splits import BAG, Predictions, compared

CPU = torch.device("cpu")
SMALL = [
    "benchmark.encoders.small.dim=16",
    "benchmark.encoders.small.heads=2",
    "benchmark.encoders.small.ffn_dim=16",
    "benchmark.encoders.small.layers=1",
    "benchmark.encoders.small.steps=40",
    "benchmark.env.bag_of_words.min_steps=200",
    "benchmark.env.bag_of_words.lr=0.1",
]


@pytest.mark.long
def test_every_model_is_compared_on_every_split(tmp_path, capsys):
    """One sentence of each text tells its outcome: the bag of words is ahead, and the majority right by its share."""
    rng = random.Random(0)
    telling = ("no one ever came back", "they sent some short answer", "she bought two large ones")
    outcomes = [(0, 0, 1, 2)[i % 4] for i in range(90)]
    rows = [[f"customer {i}", f"{made_up_text(rng, 9)} {telling[y]}", str(y)] for i, y in enumerate(outcomes)]
    path = write_csv(tmp_path / "mails.csv", rows)
    data = f"benchmark.env.data={path}"
    config = composed("benchmark=learning/reward_model_splits", data, "benchmark.splits=3", *SMALL, name="bench")
    found = instantiate(config.benchmark, _convert_="all")(tmp_path, CPU, 0)
    assert list(found["results"]) == ["majority", BAG, "small"] and found["mails"] == 90
    assert found["results"]["majority"]["accuracy"] == pytest.approx(0.5, abs=0.15)
    assert found["results"][BAG]["accuracy_above_majority"]["low"] > 0
    assert found["results"][BAG]["nats_ahead_of_bag"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "3 random splits" in capsys.readouterr().out
    with pytest.raises(ValueError, match="benchmark.env.data: expected the path of a CSV"):
        few = ["benchmark.env.corpus.train=100", "benchmark.env.corpus.valid=50", "benchmark.env.corpus.test=50"]
        config = composed("benchmark=learning/reward_model_splits", *few, name="bench")
        instantiate(config.benchmark, _convert_="all")(tmp_path, CPU, 0)


def test_a_mail_that_several_splits_tested_counts_once():
    """Mail 7 was tested three times, mail 9 once: the mean over mails is (mean of 7's + 9's) / 2."""
    tested = torch.tensor([7, 9, 7, 7])
    zero = torch.zeros(4, dtype=torch.float64)
    model = Predictions(torch.tensor([0.1, 1.0, 0.2, 0.3]).double(), torch.tensor([1.0, 0.0, 1.0, 0.0]).double())
    found = compared({"majority": Predictions(zero, zero), BAG: Predictions(zero, zero), "m": model}, tested, 200, 0)
    assert found["m"]["log_loss"] == pytest.approx((0.2 + 1.0) / 2)
    assert found["m"]["accuracy"] == pytest.approx((2 / 3 + 0.0) / 2)
    assert found["m"]["nats_ahead_of_bag"]["mean"] == pytest.approx(-0.6)
    assert found["m"]["nats_ahead_of_bag"]["low"] == pytest.approx(-1.0)
    assert found["m"]["nats_ahead_of_bag"]["high"] == pytest.approx(-0.2)

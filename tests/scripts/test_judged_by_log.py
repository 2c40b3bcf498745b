"""A shop's log of sends judges what is learned from it; a season is simulated where it is asked for."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from envs.configuration import CONF
from scripts import train

LOG = "envs.logged.evaluation.LogEvaluator"
SEASON = "envs.offers.evaluation.evaluator.OffersEvaluator"


@pytest.mark.parametrize(
    "overrides, is_sends, expected",
    [
        (["log=x.parquet"], True, LOG),
        (["log=x.parquet"], False, SEASON),  # of a simulator, whose season is the truth
        (["log=x.parquet", "env/evaluation=offers"], True, SEASON),
        (["log=x.parquet", "env.evaluation.customers=50"], True, SEASON),
        ([], True, SEASON),
    ],
)
def test_who_judges(monkeypatch, capsys, overrides, is_sends, expected):
    monkeypatch.setattr(train, "is_send_log", lambda path: is_sends)
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            whole = compose("train", overrides=["algo=bandit", *overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(whole)
            cfg = train.judged_by_its_log(compose("train", overrides=["algo=bandit", *overrides]))
    finally:
        HydraConfig.instance().cfg = before
    assert cfg.env.evaluation._target_ == expected and cfg.log == (None if not overrides else "x.parquet")
    assert ("env/evaluation=log" in capsys.readouterr().out) == (expected == LOG)

"""Several trainings judged together against the evaluation's own comparison of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import composed
from envs.offers.evaluation.profit_decomposition import paired_difference, summarise_seasons
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.policies.information import ORACLE
from envs.offers.policies.rollover import planning_policy
from small_runs import OFFERS
from stored import save_state

CPU = torch.device("cpu")
RIVALS = ["planning on θ̂", "planning"]
FIRST_WEIGHTS = ["algo.network.first_bias=0.0", "algo.network.policy_gain=1.0"]
SIZES = [*OFFERS, "env.evaluation.seasons=2"]  # a customer's difference is a mean over seasons
SMALL = [x.replace("env.evaluation", "benchmark.evaluation") for x in SIZES if x.startswith("env.evaluation")]


def stored(folder: Path, seed: int, *changes: str) -> str:
    """Store a policy that learned nothing, and sends what its first weights prefer."""
    config = composed("algo=ppo", "env.population.r2=0.6", *SIZES, *FIRST_WEIGHTS, *changes)
    algorithm = instantiate(config.algo, _convert_="all")(instantiate(config.env, _convert_="all")(CPU, seed), seed)
    parts = {key: OmegaConf.to_container(config[key], resolve=True) for key in ("env", "algo")}
    path = folder / f"{seed}{len(changes)}.pt"
    save_state(path, "ppo", algorithm.state_dict(), seed=seed, **parts)
    return str(path)


def judged(folder: Path, checkpoints: list[str], *changes: str) -> dict:
    """Run the benchmark."""
    config = composed("benchmark=learning/trainings", *SMALL, *changes, name="bench").benchmark
    config.checkpoints, config.rivals = checkpoints, RIVALS
    return instantiate(config, _convert_="all")(folder, CPU, 0)


@pytest.mark.long
def test_the_pooled_difference_is_that_of_the_mean_of_the_trainings(tmp_path, capsys):
    paths = [stored(tmp_path, seed) for seed in (0, 1)]
    found = judged(tmp_path, paths)
    config = composed("algo=ppo", "env.population.r2=0.6", *SIZES, *FIRST_WEIGHTS)
    env = instantiate(config.env, _convert_="all")(CPU, 0)
    evaluator = env.evaluation(env)
    market, tuning_market = evaluator.test_market(env.budget), evaluator.tuning_market(env.budget)
    bound = evaluator.solve_bound(market)
    theirs = evaluator.simulate(planning_policy(market, bound, ORACLE), market, bound, evaluator.seasons, TEST_SEASONS)
    for k, path in enumerate(paths):
        algorithm = instantiate(config.algo, _convert_="all")(env, 0)
        algorithm.load_policy(torch.load(path, weights_only=True)["agent"])
        ours = evaluator.simulate(
            evaluator.deploy(algorithm, market, tuning_market)[0], market, bound, evaluator.seasons, TEST_SEASONS
        )
        expected = paired_difference(ours, theirs, market, bound)
        assert found["ahead_of"]["planning"]["each"][k] == pytest.approx(expected, abs=1e-9)
        assert found["policies"][path]["score"] == pytest.approx(summarise_seasons(ours, market, bound)["score"])
        assert found["policies"][path]["at true spend"]["score"] != found["policies"][path]["score"]
    for name in RIVALS:
        each, (mean, low, high) = found["ahead_of"][name]["each"], found["ahead_of"][name]["pooled"]
        assert mean == pytest.approx((each[0][0] + each[1][0]) / 2, abs=1e-12) and each[0] != each[1]
        widths = [x[2] - x[1] for x in each]  # of a mean of two: at most the mean, and no less than half the difference
        assert abs(widths[0] - widths[1]) / 2 - 1e-9 <= high - low <= sum(widths) / 2 + 1e-9
    assert "Mean of 2 trainings ahead of" in capsys.readouterr().out


@pytest.mark.long
def test_what_can_not_be_judged_together_is_refused_in_one_line(tmp_path):
    paths = [stored(tmp_path, 0), stored(tmp_path, 1, "env.price_noise=0.2")]
    with pytest.raises(ValueError, match=r"benchmark.checkpoints: expected paths"):
        judged(tmp_path, [])
    with pytest.raises(ValueError, match=r"11.pt: expected a training in the environment of .*00.pt"):
        judged(tmp_path, paths)

"""The number of calls from the start of a training to PPO's loss, and to a step of a rollout."""

from __future__ import annotations

from call_spy import calls_to_the_loss
from toy_envs import Bandit, make_ppo


def test_the_loss_is_five_calls_from_the_start_of_a_training(tmp_path, monkeypatch):
    calls = calls_to_the_loss(
        monkeypatch,
        tmp_path,
        "algo=ppo",
        "env=offers",
        "env.num_agents=12",
        "algo.minibatches=2",
        "env.population.reference_size=200",
        "algo.total_steps=144",
        "device=cpu",
    )
    assert calls == ["training_loop.run", "ppo.iterate", "ppo.update", "ppo.compute_gradients", "losses.ppo"]


def test_a_collection_calls_one_rollout_function_once():
    ppo = make_ppo(Bandit(8), 1)
    calls, collect_rollout = [], ppo.collect_rollout
    ppo.collect_rollout = lambda *arguments: calls.append(arguments) or collect_rollout(*arguments)
    ppo.collect()
    ((env, network, uniforms),) = calls
    assert env is ppo.env and network is ppo.network and uniforms.shape == (ppo.num_steps, 8)

"""A training that diverged ends with one line, and leaves a checkpoint of finite weights."""

from __future__ import annotations

import math

import pytest
import torch

from rlcore.runs import checkpoint, divergence
from stored import save_state
from toy_envs import Chain, make_ppo, train


class Broken(Chain):
    """A chain whose observations have NaN in column 3 from a step on."""

    def __init__(self, num_agents: int, after: int):
        self.steps, self.after = 0, after
        super().__init__(num_agents)

    def step(self, action):
        self.steps += 1
        return super().step(action)

    def observe(self, state):
        obs = super().observe(state)
        if self.steps >= self.after:
            obs[:, 3] = math.nan
        return obs


def test_nan_in_an_observation_is_named_by_its_column(tmp_path):
    path = tmp_path / "c.pt"
    ppo = make_ppo(Broken(16, after=3 * 5 + 2), 8, num_steps=5, checkpoint_every=1)
    line = r"iteration 4: losses/\w+ is nan \(column 3 of the observations is not finite\): the training diverged"
    with pytest.raises(ValueError, match=line):
        train(ppo, save=lambda: save_state(path, "ppo", ppo.state_dict()))
    assert checkpoint.load(path)["agent"]["iteration"] == 3


def test_a_column_that_has_a_name_is_called_by_it():
    obs = torch.zeros(4, 3)
    assert divergence.describe_observations(obs, ["age", "visits", "price"]) == ""
    obs[2, 1] = math.inf
    said = divergence.describe_observations(obs, ["age", "visits", "price"])
    assert said == " (column 'visits' of the observations is not finite)"


def test_a_step_too_large_ends_the_run_and_keeps_finite_weights(tmp_path):
    path = tmp_path / "c.pt"
    ppo = make_ppo(Chain(16), 8, num_steps=5, checkpoint_every=1, optimizer={"lr": 1e30})
    with pytest.raises(ValueError, match=r"iteration \d: losses/|not saved: agent.network"):
        train(ppo, save=lambda: save_state(path, "ppo", ppo.state_dict()))
    if path.exists():
        weights = checkpoint.load(path)["agent"]["network"].values()
        assert all(w.isfinite().all() for w in weights if w.is_floating_point())


@pytest.mark.parametrize("name", ["losses/policy_loss", "objective/kl", "ppo/ratio", "twin/fitted"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_loss_is_checked_and_what_may_be_undefined_is_not(name, value):
    undefined = {"losses/explained_variance": math.nan, "ppo/ratio_var": math.nan, "rollout/return": math.nan}
    divergence.check_metrics(undefined, 1, str)
    with pytest.raises(ValueError, match=f"iteration 7: {name} is"):
        divergence.check_metrics({**undefined, name: value}, 7, str)


def test_weights_are_checked_wherever_they_stand():
    finite = {"network": {"a": torch.ones(2)}, "kl": torch.tensor(math.nan), "iteration": 3}
    divergence.check_weights(finite, "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: agent.exploration.noise: expected finite weights"):
        divergence.check_weights({**finite, "exploration": {"noise": torch.tensor([math.inf])}}, "x.pt")
    bad = {**finite, "members": [{"w": torch.ones(1)}, {"w": torch.tensor([1.0, math.inf])}]}
    with pytest.raises(ValueError, match=r"x.pt: agent.members.1.w: expected finite weights"):
        divergence.check_weights(bad, "x.pt")

"""Compare policies in Gymnasium's environments by the mean return of whole episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from envs.adapters.gymnasium_env import GymnasiumEnv
from rlcore.algorithm import Algorithm, Policy
from rlcore.distributions import unflatten
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.runs.progress import tracked
from rlcore.runs.report import Report

Choose = Callable[[Tensor, Tensor], Tensor]  # obs [B, D], mask [B, *nvec] → actions [B, K]


def policy_mode(policy: Policy) -> Choose:
    """Take the policy's most probable actions."""
    return lambda obs, action_mask: policy.act(obs, action_mask)[0]


def sample_actions(nvec: tuple[int, ...], generator: torch.Generator) -> Choose:
    """Take any valid actions, all with the same probability."""

    def choose(obs, action_mask):
        u = torch.rand(action_mask.flatten(1).shape, generator=generator, device=action_mask.device)
        return unflatten(u.masked_fill(~action_mask.flatten(1), -1.0).argmax(-1), nvec)

    return choose


def play_episodes(choose: Choose, env: GymnasiumEnv, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the returns and lengths of the first `each` episodes of every copy, [each · B].

    Each copy gives the same number of episodes: the first episodes to end would be the short ones.
    """
    obs, action_mask = env.reset()
    returned, length = np.zeros(env.num_agents), np.zeros(env.num_agents, dtype=int)
    ended: list[list[tuple[float, int]]] = [[] for _ in range(env.num_agents)]
    while any(len(episodes) < each for episodes in ended):
        step = env.step(choose(obs, action_mask))
        obs, action_mask = step.obs, step.action_mask
        returned, length = returned + step.reward.cpu().numpy(), length + 1
        for i in np.flatnonzero((step.terminated | step.truncated).cpu().numpy()):
            ended[i].append((returned[i], length[i]))
            returned[i], length[i] = 0.0, 0
    returns, lengths = zip(*(episode for episodes in ended for episode in episodes[:each]))
    return np.array(returns), np.array(lengths)


class GymnasiumEvaluator:
    """Plays `episodes` with the policy's mode and, for comparison, at random; `validation` episodes during training."""

    headline = "validation/return"

    def __init__(self, env: GymnasiumEnv, *, seed: int, episodes: int, validation: int):
        self.env, self.seed, self.episodes, self.validation = env, seed, episodes, validation

    @torch.no_grad()
    def _play(self, choose: Choose, count: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        copies = min(count, self.env.num_agents)
        env = GymnasiumEnv(
            self.env.device,
            self.seed + stream,
            id=self.env.id,
            kwargs=self.env.kwargs,
            num_agents=copies,
            evaluation=None,
        )
        returns, lengths = play_episodes(choose, env, -(-count // copies))
        env.envs.close()
        return returns[:count], lengths[:count]

    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Return the mean return of the policy's mode during training."""
        returns, lengths = self._play(policy_mode(algorithm.policy), self.validation, 1)
        return {self.headline: returns.mean().item(), "validation/length": lengths.mean().item()}

    def evaluate(self, algorithm: Algorithm | None, name: str) -> Report:
        """Compare the policy, as the row `name`, with random actions."""
        generator = torch.Generator(self.env.device).manual_seed(self.seed)
        policies = {"random": sample_actions(self.env.nvec, generator)}
        if algorithm is not None:
            policies[name] = policy_mode(algorithm.policy)
        rows = {
            row: self._summarise(*self._play(choose, self.episodes, 2))
            for row, choose in tracked(policies.items(), "policies")
        }
        columns = {
            "return": lambda row: f"{row['return']:,.2f}",
            "±": lambda row: f"{row['return_ci'][1] - row['return']:,.2f}",
            "lowest": lambda row: f"{row['lowest']:,.2f}",
            "highest": lambda row: f"{row['highest']:,.2f}",
            "length": lambda row: f"{row['length']:,.1f}",
        }
        return Report(
            title=f"{self.env.id}, {self.episodes} episodes",
            caption="return: mean, ± its 95 % interval",
            rows=dict(sorted(rows.items(), key=lambda item: item[1]["return"])),
            columns=columns,
            last=None,
            extra={"environment": self.env.id},
            plots={},
            judged="return",
            beside=("length",),
        )

    @staticmethod
    def _summarise(returns: np.ndarray, lengths: np.ndarray) -> dict:
        mean = returns.mean().item()
        half_width = normal_half_width(torch.as_tensor(returns), LEVEL).item()
        return {
            "return": mean,
            "return_ci": [mean - half_width, mean + half_width],
            "lowest": returns.min().item(),
            "highest": returns.max().item(),
            "length": lengths.mean().item(),
        }

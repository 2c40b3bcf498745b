"""How policies of Gymnasium's environments are judged: by the mean return of whole episodes."""
from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from torch import Tensor

from envs.adapters.gymnasium_env import GymnasiumEnv
from rlcore.algorithm import Algorithm, Policy
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.report import Report
from rlcore.distributions import unflatten



def mode_of(policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from observations and masks to the policy's most probable actions."""
    return lambda obs, action_mask: policy.act(obs, action_mask)[0]


def episodes(choose: Callable[[Tensor, Tensor], Tensor], env: GymnasiumEnv, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths of the first `each` episodes of every copy, [each · B].

    So many from each, and not the first to end: these would be the short ones.
    """
    obs, mask = env.reset()
    total, length, done = np.zeros(env.num_agents), np.zeros(env.num_agents, dtype=int), [[] for _ in range(env.num_agents)]
    while any(len(ended) < each for ended in done):
        step = env.step(choose(obs, mask))
        obs, mask = step.obs, step.action_mask
        total, length = total + step.reward.cpu().numpy(), length + 1
        for i in np.flatnonzero((step.terminated | step.truncated).cpu().numpy()):
            done[i].append((total[i], length[i]))
            total[i], length[i] = 0.0, 0
    returns, lengths = zip(*(episode for ended in done for episode in ended[:each]))
    return np.array(returns), np.array(lengths)


class GymnasiumEvaluator:
    """Play `episodes` with the policy's mode and, for comparison, at random; `validation` in the course of training.

    """

    headline = "evaluation/return"

    def __init__(self, env: GymnasiumEnv, *, seed: int, episodes: int, validation: int):
        self.env, self.seed, self.episodes, self.validation = env, seed, episodes, validation

    @torch.no_grad()
    def _play(self, choose: Callable, count: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        copies = min(count, self.env.num_agents)
        env = GymnasiumEnv(self.env.device, self.seed + stream, id=self.env.id, kwargs=self.env.kwargs, num_agents=copies,
                           evaluation=None)
        returns, lengths = episodes(choose, env, -(-count // copies))
        env.envs.close()
        return returns[:count], lengths[:count]

    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Return the mean return of a policy's mode in the course of training."""
        returns, lengths = self._play(mode_of(algorithm.policy), self.validation, 1)
        return {self.headline: returns.mean().item(), "evaluation/length": lengths.mean().item()}

    def evaluate(self, algorithm: Algorithm | None, name: str) -> Report:
        """Compare the policy, where there is one, with random actions."""
        generator = torch.Generator(self.env.device).manual_seed(self.seed)

        def random(obs, mask):
            u = torch.rand(mask.flatten(1).shape, generator=generator, device=mask.device)
            index = u.masked_fill(~mask.flatten(1), -1.0).argmax(-1)
            return unflatten(index, self.env.nvec)
        policies = {"random": random}
        if algorithm is not None:
            policies[name] = mode_of(algorithm.policy)
        rows = {}
        for row, choose in policies.items():
            returns, lengths = self._play(choose, self.episodes, 2)
            half = normal_half_width(torch.as_tensor(returns), LEVEL).item()
            mean = returns.mean().item()
            rows[row] = {"return": mean, "return_ci": [mean - half, mean + half], "lowest": returns.min().item(),
                         "highest": returns.max().item(), "length": lengths.mean().item()}
        rows = dict(sorted(rows.items(), key=lambda item: item[1]["return"]))
        columns = {"return": lambda r: f"{r['return']:,.2f}", "±": lambda r: f"{r['return_ci'][1] - r['return']:,.2f}",
                   "lowest": lambda r: f"{r['lowest']:,.2f}", "highest": lambda r: f"{r['highest']:,.2f}",
                   "length": lambda r: f"{r['length']:,.1f}"}
        return Report(title=f"{self.env.id}, {self.episodes} episodes", caption="return: mean, ± its 95 % interval",
                      rows=rows, columns=columns, last=None, extra={"environment": self.env.id}, plots={}, judged="return")

"""Small environments with known answers, and PPO built from the shipped YAML with some of its keys replaced."""

from __future__ import annotations

from abc import abstractmethod

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional

from configs import node
from envs.base import Step, VectorEnv
from rlcore.algorithm import Algorithm
from rlcore.backends.accelerate import accelerate
from rlcore.ppo import PPO
from rlcore.runs.logger import MemoryLogger
from rlcore.training_loop import TrainingLoop

SMALL = {
    "network": {"hidden": [32, 32], "heads": "independent", "first_bias": 0.0, "normalize_obs": False},
    "optimizer": {"lr": 0.01},
    "num_steps": 5,
    "epochs": 2,
    "minibatches": 2,
    "gamma": 1.0,
    "gae_lambda": 0.9,
    "clip": 0.2,
    "clip_value": None,
    "vf_coef": 0.5,
    "ent_coef": 0.0,
    "ent_coef_final": 0.0,
    "norm_adv": "minibatch",
    "norm_reward": True,
    "center_reward": False,
    "max_grad_norm": 0.5,
    "target_kl": None,
    "eval_every": 1000,
    "checkpoint_every": 1000,
}


def part(name: str, **changes) -> DictConfig:
    """Compose conf/algo/NAME.yaml with some of its keys replaced."""
    return OmegaConf.merge(node(f"../algo/{name}"), changes)


def ppo_config(env: VectorEnv, iterations: int, **changes) -> DictConfig:
    """Compose PPO's YAML for some iterations: SMALL, with a linear schedule and no auxiliary model, then `changes`."""
    config = part("ppo", lr_schedule=None, auxiliary=None)
    config = OmegaConf.merge(config, SMALL, {"lr_schedule": part("lr_schedule/linear", final=0.0), **changes})
    config.total_steps = iterations * config.num_steps * env.num_agents
    return config


def make_ppo(env: VectorEnv, iterations: int, *, seed: int = 0, mode: str = "eager", **changes) -> PPO:
    """Build PPO as `ppo_config` says, to run in a mode."""
    return accelerate(instantiate(ppo_config(env, iterations, **changes), _convert_="all")(env, seed), mode)


def train(algorithm: Algorithm, save=lambda: None, validate=None, should_stop=lambda: False) -> MemoryLogger:
    """Train to the end, or until `should_stop`, and return the log."""
    logger = MemoryLogger()
    TrainingLoop(algorithm, logger, save=save, validate=validate, should_stop=should_stop).run()
    return logger


class Toy(VectorEnv):
    """Agents with a state [B, S] each, reset within the step; `invalid` counts the actions that the mask forbade."""

    device = torch.device("cpu")
    info_keys = ("reward", "redeemed")

    def __init__(self, num_agents: int, seed: int = 0):
        self.num_agents = num_agents
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.state, self.invalid = self.fresh(), 0

    @abstractmethod
    def fresh(self) -> Tensor:
        """Draw the states that episodes start in."""

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """Observe states, [B, D]."""

    @abstractmethod
    def allowed(self, state: Tensor) -> Tensor:
        """Return the mask of states, [B, *nvec]."""

    @abstractmethod
    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the next states, rewards, terminated and truncated."""

    def reset(self) -> tuple[Tensor, Tensor]:
        return self.observe(self.state), self.allowed(self.state)

    def step(self, action: Tensor) -> Step:
        valid = self.allowed(self.state)[(torch.arange(self.num_agents), *action.T)]
        self.invalid += (~valid).sum().item()
        following, reward, terminated, truncated = self.move(self.state, action)
        self.state = torch.where((terminated | truncated)[:, None], self.fresh(), following)
        return Step(
            *self.reset(),
            reward,
            terminated,
            truncated,
            self.observe(following),
            {"reward": reward, "redeemed": reward > 0.5},
            self.allowed(following) if self.can_truncate else None,
        )

    def state_dict(self) -> dict:
        return {"state": self.state, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.state = state["state"]
        self.generator.set_state(state["generator"])


class Bandit(Toy):
    """One step: drawn contexts and joint masks; a third of the agents may do nothing but (0, 0).

    A pair pays 1 where the parity of both heads together fits the sign of the context, else 0.
    Contexts are far from zero and from unit scale, so that normalising them matters.
    """

    nvec, obs_dim, forced = (3, 2), 3, 1 / 3
    has_fixed_lengths = True

    def fresh(self) -> Tensor:
        context = torch.randn(self.num_agents, 3, generator=self.generator)
        return torch.cat((context, torch.rand(self.num_agents, 7, generator=self.generator)), -1)

    def observe(self, state: Tensor) -> Tensor:
        return state[:, :3] * torch.tensor([5.0, 0.1, 1.0]) + torch.tensor([20.0, 0.0, -3.0])

    def allowed(self, state: Tensor) -> Tensor:
        mask = (state[:, 3:9] < 0.7) & (state[:, 9:] > self.forced)
        mask[:, 0] = True
        return mask.view(-1, *self.nvec)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        reward = (action.sum(-1) % 2 == (state[:, 0] > 0).long()).float()
        ends = torch.ones(self.num_agents, dtype=torch.bool)
        return self.fresh(), reward, ends, ~ends

    def best(self) -> float:
        """Compute the best expected reward, on drawn states."""
        pairs = torch.cartesian_prod(*map(torch.arange, self.nvec))
        state = torch.cat([self.fresh() for _ in range(100)])
        fits = (pairs.sum(-1) % 2)[None] == (state[:, :1] > 0).long()
        return (fits & self.allowed(state).flatten(1)).any(-1).float().mean().item()


class Endless(Toy):
    """A start that costs 4, then 1 a step for ever; time limits of 4 steps cut it, and are not observed.

    With γ = .8 the start is worth 0 and every later state 5.
    """

    nvec, obs_dim, can_truncate, limit = (2,), 2, True, 4

    def fresh(self) -> Tensor:
        return torch.zeros(self.num_agents, 1, dtype=torch.long)

    def observe(self, state: Tensor) -> Tensor:
        return functional.one_hot((state[:, 0] > 0).long(), 2).float()

    def allowed(self, state: Tensor) -> Tensor:
        return torch.ones(len(state), 2, dtype=torch.bool)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        reward = torch.where(state[:, 0] == 0, -4.0, 1.0)
        following = state + 1
        return following, reward, torch.zeros_like(reward, dtype=torch.bool), following[:, 0] == self.limit


class Chain(Toy):
    """Five steps along a chain: stay for .2 now, or advance (with the hand that the place asks for) for 1 at the end.

    A place back from the start, and staying with the second hand, are forbidden, and would pay 2. The best return is 5.
    """

    nvec, obs_dim, best = (3, 2), 11, 5.0

    def fresh(self) -> Tensor:
        return torch.zeros(self.num_agents, 2, dtype=torch.long)  # time, place

    def observe(self, state: Tensor) -> Tensor:
        time, place = state.unbind(-1)
        return torch.cat((functional.one_hot(time % 5, 5), functional.one_hot(place, 6)), -1).float()

    def allowed(self, state: Tensor) -> Tensor:
        mask = torch.ones(len(state), *self.nvec, dtype=torch.bool)
        mask[:, 0, 1] = False
        mask[:, 2] = (state[:, 1] > 0)[:, None]
        return mask

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (time, place), (go, hand) = state.unbind(-1), action.unbind(-1)
        forbidden = (go == 0) & (hand == 1) | (go == 2) & (place == 0)
        place = (place + ((go == 1) & (hand == place % 2)).long() - (go == 2).long()).clamp_min(0)
        ends = time == 4
        reward = 0.2 * (go == 0) + 2.0 * forbidden + place * ends
        return torch.stack((time + 1, place), -1), reward, ends, torch.zeros_like(ends)

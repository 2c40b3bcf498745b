"""Compare learning with Stable-Baselines3: time to equal return, and returns at equal steps under masks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from envs.adapters.stable_baselines3 import OffersVecEnv
from envs.sequential.env import SequentialEnv
from envs.sequential.evaluation import offline_knapsack, simulate_season
from envs.sequential.policies import no_contact
from rlcore.backends.accelerate import accelerate
from rlcore.distributions import unflatten
from rlcore.ope.intervals import mean_and_half_width
from rlcore.ppo import PPO
from rlcore.runs.logger import Metrics, NullLogger
from rlcore.runs.plots import labelled
from rlcore.training_loop import TrainingLoop
from scripts.benchmarks.common.display import save_figure
from scripts.benchmarks.speed.sb3_contestants import peer, scalars

try:
    from sb3_contrib import MaskablePPO
except ImportError as error:
    raise ValueError("sb3-contrib is not installed: pip install -e '.[bench]'") from error


@torch.no_grad()
def season_return(choose: Callable[[Tensor, Tensor], Tensor], env: SequentialEnv) -> float:
    """Mean return of a season over all worlds; `choose` maps obs and mask to actions [W, 2]."""
    obs, mask = env.reset()
    total = torch.zeros(())
    for _ in range(env.season_steps):
        step = env.step(choose(obs, mask))
        obs, mask, total = step.obs, step.action_mask, total + step.reward.mean()
    return total.item()


def predicted(model, flat: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Act by the draws of a Stable-Baselines3 model: where a budget binds, a mode may contact nobody."""

    def choose(obs, mask):
        if not flat:
            return torch.as_tensor(model.predict(obs.numpy(), deterministic=False)[0])
        index = torch.as_tensor(
            model.predict(obs.numpy(), deterministic=False, action_masks=mask.flatten(1).numpy())[0]
        )
        return unflatten(index, tuple(mask.shape[1:]))

    return choose


def drawn(ppo: PPO, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    """Act by the draws of our policy, from a stream of its own."""
    return lambda obs, mask: ppo.policy.act(obs, mask, torch.rand(len(obs), generator=generator))[0]


class ReturnCurve(BaseCallback):
    """Evaluates a Stable-Baselines3 model every so many iterations, with the clock stopped."""

    def __init__(self, judge: Callable[[], float], every: int):
        super().__init__()
        self.judge, self.every, self.spent, self.iteration = judge, every, 0.0, 0
        self.points: list[tuple[float, float]] = []

    def _on_training_start(self) -> None:
        self.started = time.process_time()

    def _on_rollout_start(self) -> None:
        self.look(self.iteration % self.every == 0)
        self.iteration += 1

    def _on_training_end(self) -> None:
        self.look(True)

    def look(self, due: bool) -> None:
        """Add a point (seconds, return) if one is due."""
        now = time.process_time() - self.started - self.spent
        if due:
            self.points.append((now, self.judge()))
            self.spent = time.process_time() - self.started - now

    def _on_step(self) -> bool:
        return True


class CurveLogger(NullLogger):
    """A logger for our PPO that evaluates every so many iterations and keeps nothing else."""

    def __init__(self, judge: Callable[[], float], every: int):
        self.judge, self.every, self.points, self.spent = judge, every, [(0.0, judge())], 0.0
        self.started = time.process_time()

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Add a point (seconds, return) if one is due."""
        if iteration % self.every == 0:
            now = time.process_time() - self.started - self.spent
            self.points.append((now, self.judge()))
            self.spent = time.process_time() - self.started - now


def ours_trained(
    make: Callable[[], SequentialEnv],
    algo: partial[PPO],
    seed: int,
    mode: str,
    steps: int,
    every: int,
    judge: SequentialEnv,
) -> CurveLogger:
    """Train our PPO for some steps and return its curve."""
    ppo = partial(algo, total_steps=steps)(make(), seed)
    accelerate(ppo, mode)
    if mode == "compile":  # compilation is no part of the learning time
        before = copy.deepcopy(ppo.state_dict())
        ppo.update(ppo.compute_advantages(ppo.collect()))
        ppo.load_state_dict(before)
    log = CurveLogger(
        lambda: season_return(drawn(ppo, torch.Generator().manual_seed(1)), judge.copy_of_size(judge.num_agents, 1)),
        every,
    )
    TrainingLoop(ppo, log).run()
    return log


def reached(points: list[tuple[float, float]], target: float) -> float | None:
    """First second at which a curve is at the target."""
    return next((second for second, value in points if value >= target), None)


def over_seeds(returns: list[float]) -> dict:
    """Returns by seed, their mean and its 95 % interval (Student)."""
    mean, half = mean_and_half_width(torch.tensor(returns, dtype=torch.float64))
    return {"returns": returns, "mean": mean, "ci": [mean - half, mean + half]}


def learning_curves(
    directory: Path,
    make: Callable[[], SequentialEnv],
    algo: partial[PPO],
    seed: int,
    modes: list,
    example: SequentialEnv,
    *,
    steps: int,
    every: int,
    worlds: int,
) -> dict:
    """Train all for equal steps; return the time in which each reaches Stable-Baselines3's best return."""
    judge = example.copy_of_size(worlds, 1)
    curves = {}

    def judged(model) -> float:
        return season_return(predicted(model, False), judge.copy_of_size(worlds, 1))

    for name, vec in (("SB3, DummyVecEnv", scalars(example)), ("SB3, our VecEnv", OffersVecEnv(make(), False))):
        model = peer(stable_baselines3.PPO, vec, seed, algo.keywords)
        curve = ReturnCurve(partial(judged, model), every)
        model.learn(steps, callback=curve)
        curves[name] = curve.points
    for mode in modes:
        curves[f"ours, {mode}"] = ours_trained(make, algo, seed, mode, steps, every, judge).points
    target = max(value for _, value in curves["SB3, DummyVecEnv"])
    figure, axes = labelled("CPU seconds of training", "return of a season")
    for name, points in curves.items():
        axes.plot(*zip(*points), label=name)
    axes.legend(frameon=False)
    save_figure(directory, "learning", figure)
    return {
        "target": target,
        "steps": steps,
        "rows": {
            name: {
                "seconds_to_target": reached(points, target),
                "seconds": points[-1][0],
                "final": points[-1][1],
                "best": max(value for _, value in points),
                "curve": points,
            }
            for name, points in curves.items()
        },
    }


def masked(
    env: Callable[..., SequentialEnv],
    device: torch.device,
    algo: partial[PPO],
    *,
    steps: int,
    seeds: list,
    worlds: int,
) -> dict:
    """Train both with masks for equal steps; return their returns by seed on the same seasons."""
    judge = env(device, 0).copy_of_size(worlds, 1)
    values = simulate_season(no_contact, judge, keep_values=True).values
    assert values is not None  # they are kept
    optimum = offline_knapsack(values, judge.cost, judge.budget, judge.world.weeks)
    rows: dict[str, list[float]] = {"MaskablePPO": [], "ours": []}
    for seed in seeds:
        model = peer(MaskablePPO, OffersVecEnv(env(device, seed), True), seed, algo.keywords)
        model.learn(steps)
        ppo = partial(algo, total_steps=model.num_timesteps)(env(device, seed), seed)
        TrainingLoop(ppo, NullLogger()).run()
        for name, choose in (
            ("MaskablePPO", predicted(model, True)),
            ("ours", drawn(ppo, torch.Generator().manual_seed(1))),
        ):
            rows[name].append(season_return(choose, judge.copy_of_size(worlds, 1)))
    return {
        "steps": steps,
        "optimum": optimum.value.sum(0).mean().item(),
        "rows": {name: over_seeds(returns) for name, returns in rows.items()},
    }

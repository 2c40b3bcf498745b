"""Train and judge: python scripts/train.py algo=ppo env=offers, algo=reward_model env=email, or algo=bandit log=PATH.

By several processes, each with a share of the agents: torchrun --nproc_per_node=2 scripts/train.py algo=ppo env=offers.
"""
from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Callable

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlcore import checkpoint  # noqa: E402
from rlcore.offline import logged_dataset as logged  # noqa: E402
from rlcore.backends import distributed as parallel  # noqa: E402
from rlcore.offline.log_files import read  # noqa: E402
from rlcore.logger import Quiet  # noqa: E402
from scripts.cli import check_fit, choose_device, fitting, flatten, guarded, launch, publish, teacher  # noqa: E402

SILENT = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled")  # for all processes but the first


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    device = choose_device(cfg.device, cfg.threads, cfg.matmul)
    with parallel.joined(device):
        judge = train(cfg, device)
    judge()  # alone, for it can train rivals


def train(cfg: DictConfig, device: torch.device) -> Callable[[], None]:
    """Train, and return what judges; under torchrun the first process alone logs, writes and judges."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    config = OmegaConf.to_container(cfg, resolve=True)
    name = HydraConfig.get().runtime.choices["algo"]
    parts = {key: instantiate(cfg[key], _convert_="all") for key in ("env", "algo", "logger")}
    if parallel.size() > 1 and not getattr(parts["algo"].func, "sharded", ()):
        raise ValueError(f"algo={name}: can't be trained by several processes, expected algo=ppo or ppo_kl")
    env = part_of(parts["env"], device, cfg.seed)
    check_fit(parts["algo"], env)
    state = checkpoint.load(cfg.resume) if cfg.resume else None
    if state:
        state["agent"] |= own(state, cfg.resume)
        with fitting(cfg.resume):
            env.load_fitted(state["agent"].get("env"))
    if cfg.fast == "cudagraph" and device.type != "cuda":
        print("fast=cudagraph: no GPU here, so all runs eagerly")
    agent = parts["algo"](env, cfg.seed, cfg.fast)
    if cfg.log:
        if not hasattr(agent, "learn_from"):
            raise ValueError(f"algo={name} log={cfg.log}: {name} can't learn from a log, expected algo=bandit, bcq, cql or twin")
        agent.learn_from(read(cfg.log, lambda chunk: logged.fitting(chunk, env, cfg.log).slim(env.context_dim)))
    if getattr(agent, "init", None):
        agent.teacher = teacher(agent.init, env)
    evaluation = getattr(agent, "evaluation", env.evaluation)(env)
    stopped: list[int] = []
    first = parallel.rank() == 0

    if state:
        with fitting(cfg.resume):
            agent.load_state_dict(state["agent"])
    with parts["logger"](directory, agent.iterations) if first else Quiet() as logger:
        if state and first:
            with fitting(cfg.resume):
                logger.load_state_dict(state["logger"])
            before, now = flatten(state["config"]), flatten(config)
            for key in sorted(before.keys() | now.keys()):
                if before.get(key) != now.get(key) and key != "resume":
                    logger.console.print(f"resume: {key} was {before.get(key)}, is {now.get(key)}", highlight=False)

        def save() -> None:
            mine = agent.state_dict()
            shards = parallel.gathered({key: mine[key] for key in getattr(agent, "sharded", ())})
            if first:
                checkpoint.save(directory / "checkpoint.pt", {
                    "agent": mine, "shards": shards, "logger": logger.state_dict(), "name": name, "config": config})

        # The first Ctrl-C ends the iteration and saves; a second one ends the process.
        previous = signal.signal(signal.SIGINT, lambda *_: (stopped.append(1), signal.signal(signal.SIGINT, previous)))
        try:
            agent.train(logger, save, (lambda: evaluation.score(agent)) if first else None, lambda: bool(stopped))
        finally:
            signal.signal(signal.SIGINT, previous)
    if parallel.any_of(bool(stopped), device):
        if first:
            logger.close()
            print(f"stopped after iteration {agent.iteration} of {agent.iterations}; go on with "
                  f"resume={directory / 'checkpoint.pt'}")
        sys.exit(130)

    def judge() -> None:
        if first:
            logger.console.print("evaluating on what nothing was trained on …")
            publish(evaluation.run(agent, name), name, logger, directory, config)
    return judge


def part_of(env: Callable, device: torch.device, seed: int):
    """Build this process's part of an environment: an equal share of its agents, where it has some, with a stream of its own."""
    if "num_agents" not in env.keywords:
        return env(device, seed)
    return env(device, parallel.own(seed), num_agents=parallel.share(env.keywords["num_agents"], "env.num_agents"))


def own(state: dict, path: str) -> dict:
    """Return what of a checkpoint is this process's own; raise ValueError where other than so many processes have made it."""
    shards = state.get("shards", [{}])
    if len(shards) != parallel.size():
        raise ValueError(f"{path}: {len(shards)} processes made it, {parallel.size()} can't go on from it: expected torchrun "
                         f"--nproc_per_node={len(shards)}")
    return shards[parallel.rank()]


if __name__ == "__main__":
    if int(os.environ.get("RANK", 0)):
        sys.argv += SILENT
    launch(main)

"""The algorithm of a run, built: its environment, its log, and the training that it resumes or starts from."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from rlcore.algorithm import Algorithm, OfflineAlgorithm
from rlcore.backends import distributed
from rlcore.backends.accelerate import accelerate
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs import checkpoint
from scripts.shared.cli import flatten_keys, to_dict
from scripts.shared.seen_data import Origin, with_old
from scripts.shared.stored_runs import algorithm_class, check_fit, fitting
from scripts.shared.warm_start import check_inputs, check_start


def load_resumed(cfg: DictConfig) -> dict | None:
    """Load the checkpoint to resume from, with this process's own part.

    Raises ValueError where another number of processes made it.
    """
    if not cfg.resume:
        return None
    state = checkpoint.load(cfg.resume)
    shards = state.get("shards", [{}])
    if len(shards) != distributed.num_processes():
        raise ValueError(
            f"{cfg.resume}: {len(shards)} processes made it, {distributed.num_processes()} can't go on from it: "
            f"expected torchrun --nproc_per_node={len(shards)}"
        )
    state["agent"] |= shards[distributed.rank()]
    return state


def build(
    cfg: DictConfig,
    name: str,
    device: torch.device,
    state: dict | None,
    start: dict | None,
    origin: Origin | None,
    earlier: list[dict[str, Any]],
) -> Algorithm:
    """Build environment and algorithm, and restore the `state` to resume from or the `start` of a new training, if any.

    With an `origin` the algorithm goes on with new data. `earlier` are the stages whose logs it learns from, too.
    """
    make_env, make_algorithm = (instantiate(cfg[key], _convert_="all") for key in ("env", "algo"))
    if distributed.num_processes() > 1 and not algorithm_class(make_algorithm).sharded:
        raise ValueError(f"algo={name}: can't be trained by several processes, expected algo=ppo or ppo_kl")
    env = build_part(make_env, device, cfg.seed)
    check_fit(make_algorithm, env)
    if restored := state or start:
        with fitting(cfg.resume or cfg.init):
            env.load_fitted(restored["agent"].get("env"))
    algorithm = make_algorithm(env, cfg.seed)
    if start:
        check_inputs(f"init={cfg.init}", start, algorithm)
        with fitting(cfg.init):
            algorithm.start_from(start["agent"])
    begins = origin is not None and origin.begins
    if state and begins:
        begin(cfg, name, algorithm, state)
    if cfg.log:
        set_log(cfg, name, algorithm, earlier)
    if state and not begins:
        go_on(cfg, algorithm, state)
    if cfg.execution == "cudagraph" and device.type != "cuda":
        print("execution=cudagraph: no GPU here, so all runs eagerly")
    return accelerate(algorithm, cfg.execution)


def build_part(make_env: partial, device: torch.device, seed: int) -> Any:
    """Build this process's part of an environment: an equal share of its agents, if any, with a seed of its own."""
    if "num_agents" not in make_env.keywords:
        return make_env(device, seed)
    num_agents = distributed.per_process(make_env.keywords["num_agents"], "env.num_agents")
    return make_env(device, distributed.rank_seed(seed), num_agents=num_agents)


def begin(cfg: DictConfig, name: str, algorithm: Algorithm, state: dict) -> None:
    """Let a finished training go on with new data, by iterations, schedules and random streams of its own."""
    where = f"resume={cfg.resume}"
    check_start(where, state, name, to_dict(cfg, resolve=True))
    check_inputs(where, state, algorithm)
    # what a log has, the memory of its readers would count twice
    start = algorithm.start_from if cfg.log else algorithm.continue_from
    with fitting(cfg.resume):
        start(state["agent"])


def set_log(cfg: DictConfig, name: str, algorithm: Algorithm, earlier: list[dict[str, Any]]) -> None:
    """Let an algorithm learn from the log, and from the logs of earlier stages."""
    if not isinstance(algorithm, OfflineAlgorithm):
        raise ValueError(
            f"algo={name} log={cfg.log}: {name} can't learn from a log, expected algo=bandit, bcq, cql or twin"
        )
    env = algorithm.env

    def read(path: str) -> LoggedDataset:
        return env.read_log(path, "train", partial(fitted_to, env))

    algorithm.set_dataset(with_old(earlier, cfg.resume, read(cfg.log), cfg.log, read))


def fitted_to(env: Any, chunk: LoggedDataset) -> LoggedDataset:
    """Move a chunk of a log to the environment's device, deduplicated, and let the environment see its features."""
    chunk = chunk.to(env.device)
    env.see_static_columns(chunk.obs)
    return chunk.deduplicate(env.context_dim)


def go_on(cfg: DictConfig, algorithm: Algorithm, state: dict) -> None:
    """Restore a training that was interrupted, or that had ended.

    Raises ValueError where its iterations had another number of steps: charts and totals count in steps.
    """
    with fitting(cfg.resume):
        algorithm.load_state_dict(state["agent"])
    before, now = state["logger"]["step"], algorithm.steps_done
    if before != now:
        changed = [line for line in changes(state["config"], cfg) if line.startswith(("env.", "algo."))]
        raise ValueError(
            f"resume={cfg.resume}: its {algorithm.iteration} iterations had {before:,} steps, and would have {now:,} "
            f"here: expected as many as there, got other settings: {'; '.join(changed) or 'none'}"
        )


def changes(before: dict[str, Any], cfg: DictConfig) -> list[str]:
    """Say which keys of a configuration a resumed run changes."""
    old, new = flatten_keys(before), flatten_keys(to_dict(cfg, resolve=True))
    keys = sorted((old.keys() | new.keys()) - {"resume"})
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys if old.get(key) != new.get(key)]

"""What a checkpoint holds, made again: its environment and its policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs.base import VectorEnv
from envs.configuration import CONF, instantiate_stored, require_parts
from envs.range_checks import check_stored_ranges
from rlcore.action_values import GreedyPolicy
from rlcore.algorithm import Algorithm
from rlcore.runs import checkpoint as checkpoints
from scripts.shared.cli import to_dict
from scripts.shared.explanations import explained_part
from scripts.shared.overrides import key_of

UNFIT = (KeyError, RuntimeError, TypeError, AttributeError)  # what restoring from a state raises that does not fit


def algorithm_class(make_algorithm: partial[Algorithm]) -> type[Algorithm]:
    """Return the class that a file of conf/algo names as its `_target_`."""
    kind = make_algorithm.func
    if not isinstance(kind, type) or not issubclass(kind, Algorithm):
        raise ValueError(f"algo._target_: expected a class of Algorithm, got {kind}")
    return kind


def check_fit(make_algorithm: partial[Algorithm], env: Any) -> None:
    """Refuse an environment that an algorithm can't learn from."""
    needed = algorithm_class(make_algorithm).env_type or VectorEnv
    if not isinstance(env, needed):
        chosen = HydraConfig.get().runtime.choices
        raise ValueError(
            f"algo={chosen['algo']} env={chosen['env']}: do not fit: expected an environment of the kind "
            f"{needed.__name__}, got {type(env).__name__}"
        )


@contextmanager
def fitting(path: str, config: Any = None) -> Iterator[None]:
    """Restore from a checkpoint in this context; raise ValueError where it does not fit, or where `config` is at fault.

    `config` is the nested configuration of what is built in the context, if anything is. Its targets are imported, so
    all must be admitted.
    """
    try:
        yield
    except Exception as error:
        if part := explained_part(error, config or {}):
            raise ValueError(f"{path}: its configuration, as the command line changes it: {part}") from error
        if isinstance(error, UNFIT) and not isinstance(error, torch.OutOfMemoryError):
            reason = " ".join(" ".join(str(error).splitlines()[:2]).split())  # PyTorch's has a line a tensor
            kind = "without " if isinstance(error, KeyError) else ""
            raise ValueError(f"{path}: does not fit this configuration or device: {kind}{reason}") from error
        raise


class Trained(NamedTuple):
    """A checkpoint's environment and agent, its algorithm's name, the configuration of both, and its logger's state.

    `logs` are the SHA-256 of all logs that the agent has learned from, itself or by checkpoints that it came from.
    """

    env: Any  # a VectorEnv, or e-mails
    agent: Any  # an Algorithm
    name: str
    config: Any  # nested, of dicts or a DictConfig
    logger: dict
    logs: list[str]


def load_whole(path: str) -> dict[str, Any]:
    """Load a checkpoint; raise ValueError where it lacks what an environment and an algorithm are made of."""
    state = checkpoints.load(path)
    require_parts(state["config"], ["env", "algo", "seed"], path)
    return state


def restored(
    state: dict[str, Any],
    path: str,
    config: Any,
    device: torch.device,
    *,
    env: VectorEnv | None = None,
    trusted: Iterable[str] = (),
) -> Trained:
    """Make the environment of a checkpoint's `state` under a configuration, unless `env` is given, and its policy.

    Raises ValueError, with the path, where the configuration has a number out of range or a target that is not
    admitted, and where it does not fit what was stored.
    """
    check_stored_ranges(config, CONF, path)
    built = {key: config[key] for key in ("algo", "env") if key == "algo" or env is None}
    with fitting(path, built):
        make_agent = instantiate_stored(config["algo"], path, trusted=trusted)
        if env is None:
            env = instantiate_stored(config["env"], path, trusted=trusted)(device, config["seed"])
            env.load_fitted(state["agent"].get("env"))
        agent = make_agent(env, config["seed"])
        agent.load_policy(state["agent"])
    return Trained(env, agent, state["name"], config, state["logger"], state.get("logs", []))


def trained(cfg: DictConfig, device: torch.device, own: tuple[str, ...]) -> Trained:
    """Restore the policy of `cfg.checkpoint` in the environment that it was trained on.

    Keys of env on the command line change that environment. `own` are the parts of the configuration that the
    checkpoint brings.
    """
    state = load_whole(cfg.checkpoint)
    config = as_trained(cfg, state["config"], HydraConfig.get().overrides.task, own)
    return restored(state, cfg.checkpoint, config, device, trusted=cfg.trusted_packages)


def load_teacher(env: VectorEnv, *, checkpoint: str) -> GreedyPolicy:
    """Restore the greedy policy of a checkpoint for an environment.

    Raises ValueError where the checkpoint is of another kind.
    """
    state = load_whole(checkpoint)
    policy = restored(state, checkpoint, state["config"], env.device, env=env).agent.policy
    if not isinstance(policy, GreedyPolicy):
        raise ValueError(
            f"algo.teacher.checkpoint={checkpoint}: expected a checkpoint of bcq or cql, got {state['name']}"
        )
    return policy


def as_trained(cfg: DictConfig, trained: dict, overrides: list[str], own: tuple[str, ...]) -> DictConfig:
    """Take the parts `own` from a checkpoint's configuration, except keys of env that the command line names."""
    said = []
    for override in overrides:
        key = key_of(override)
        if key.startswith("env."):
            said.append(override.lstrip("+"))
        elif key.split("/")[0].split(".")[0] in (*own, "experiment"):
            raise ValueError(
                f"{override}: the checkpoint brings its own; only keys below env can be changed, as in "
                "env.evaluation.customers=4000"
            )
    whole = OmegaConf.create({**to_dict(cfg, resolve=False), **{key: trained[key] for key in own}})
    OmegaConf.set_struct(whole, True)
    try:
        merged = OmegaConf.merge(whole, OmegaConf.from_dotlist(said))
    except OmegaConfBaseException as error:
        raise ValueError(f"{', '.join(said)}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)  # as `whole` is
    return merged

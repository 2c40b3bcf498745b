"""The files that a run has learned from, stage by stage, and whether those of a resumed run are new."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from envs.offers.logs import send_log
from rlcore.backends import distributed
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs import checkpoint
from scripts.shared.cli import to_dict
from scripts.shared.stored_runs import algorithm_class, fitting

FILES = ("log", "env.population.path", "env.population.base.path", "env.twin")  # keys of the files learned from

# keys of checkpoints that a run learns from; a population's path may be that of a twin
PARENTS = ("env.twin", "env.population.path", "algo.teacher.checkpoint")

BLOCK = 1 << 20  # bytes of a file that are read at once

Files = dict[str, dict[str, Any]]  # for each key path and SHA-256, for a log of sends also its weeks


class Origin(NamedTuple):
    """The finished training that goes on: its checkpoint's path, its state, and the stages that it has seen."""

    path: str
    agent: dict[str, Any]
    seen: list[dict[str, Any]]  #: files (`data`) and configuration (`config`) of each stage, the oldest first
    begins: bool  #: whether no training has gone on from it yet


def files_of(cfg: DictConfig) -> Files:
    """Return the files that a run learns from."""
    found: Files = {}
    for key in FILES:
        path = OmegaConf.select(cfg, key)
        if isinstance(path, str) and Path(path).is_file():
            found[key] = {"path": path, "sha256": digest(path)}
            if send_log.is_send_log(path):
                found[key]["weeks"] = send_log.count_weeks(path)
    return found


def digest(path: str) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def hashes(files: Files) -> dict[str, str]:
    """Return the SHA-256 of each file by key."""
    return {key: file["sha256"] for key, file in files.items()}


def own_stage(cfg: DictConfig) -> dict[str, Any]:
    """Return a run's own stage: the files that it learns from, and its configuration."""
    return {"data": files_of(cfg), "config": to_dict(cfg, resolve=True)}


def find_origin(cfg: DictConfig, name: str, state: dict | None, new: Files) -> Origin | None:
    """Return the training that goes on with the files `new`; None where a run starts, or goes on with its own data.

    The checkpoint of such a continuation already holds its origin, which is returned. Raises ValueError where new data
    make no sense.
    """
    if state is None:
        return None
    with fitting(cfg.resume):  # a checkpoint of another version names no data
        before, seen, finished = (state[key] for key in ("before", "seen", "finished"))
    old = seen[-1]["data"]
    changed = [key for key in FILES if hashes(old).get(key) != hashes(new).get(key)]
    where = f"resume={cfg.resume}"
    if changed and (before or not finished):
        raise ValueError(
            f"{where}: {changed[0]} has other data, and that run had not finished: expected its own data first"
        )
    if before:
        return Origin(**{**before, "begins": False})
    if not changed:
        return None
    if not issubclass(algorithm_class(instantiate(cfg.algo)), NetworkAlgorithm):
        raise ValueError(f"{where}: algo={name} can't go on with another {changed[0]}: expected init={cfg.resume}")
    if ("log" in old) != ("log" in new):
        raise ValueError(f"{where}: expected {'a log, as' if 'log' in old else 'no log, like'} that run had")
    learned_from = ["log"] if "log" in new else changed  # who learns from a log learns from nothing else
    if any(all(hashes(stage["data"]).get(key) == hashes(new).get(key) for key in learned_from) for stage in seen):
        raise ValueError(f"{where}: {learned_from[0]}: that run has learned from this file before: expected new data")
    if distributed.num_processes() > 1:
        raise ValueError(f"{where}: with new data one process goes on, got {distributed.num_processes()}")
    return Origin(cfg.resume, state["agent"], seen, begins=True)


def earlier_stages(cfg: DictConfig, state: dict | None, origin: Origin | None) -> list[dict[str, Any]]:
    """Return the stages that a run has seen before its own, the oldest first."""
    if origin:
        return origin.seen
    if state is None:
        return []
    with fitting(cfg.resume):
        stages: list[dict[str, Any]] = state["seen"][:-1]
    return stages


def logs_behind(cfg: DictConfig, stages: list[dict[str, Any]], restored: dict[str, Any] | None) -> list[str]:
    """Return the SHA-256 of every log that a run learns from, itself or by the checkpoints that it comes from.

    `stages` are all stages of the run, its own last. `restored` is the checkpoint that the training goes on from or
    starts from, if any.
    """
    found = {stage["data"]["log"]["sha256"] for stage in stages if "log" in stage["data"]}
    found.update((restored or {}).get("logs", ()))
    for key in PARENTS:
        path = OmegaConf.select(cfg, key)
        if isinstance(path, str) and zipfile.is_zipfile(path):  # as a checkpoint is, and no table of customers
            found.update(checkpoint.load(path).get("logs", ()))
    return sorted(found)


def check_unchanged(origin: str, key: str, file: dict[str, Any]) -> str:
    """Return the path of a file that a run learned from; raise ValueError where it is not there as it was."""
    path: str = file["path"]
    if not Path(path).is_file() or digest(path) != file["sha256"]:
        raise ValueError(
            f"resume={origin}: {key}={path}: expected the file that it learned from as it was, to judge on old "
            f"and on new data, and the new data in a file of their own; init={origin} forgets the old data"
        )
    return path


def logs_apart(stages: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """Return the logs of earlier stages that no later one, nor the log `path`, is taken to hold.

    A log of sends grows: it holds what it was before.
    """
    logs = [stage["data"]["log"] for stage in stages]
    grown = [file for file in logs if "weeks" in file]
    apart = [file for file in logs if "weeks" not in file]
    return apart if send_log.is_send_log(path) else apart + grown[-1:]


def with_old(
    stages: list[dict[str, Any]],
    origin: str,
    new: LoggedDataset,
    path: str,
    read: Callable[[str], LoggedDataset],
) -> LoggedDataset:
    """Return the decisions of all earlier stages and those of the log `path`, `new`; `read` reads a file."""
    old = [read(check_unchanged(origin, "log", file)) for file in logs_apart(stages, path)]
    return reduce(joined, [*old, new])


def joined(old: LoggedDataset, new: LoggedDataset) -> LoggedDataset:
    """Return the decisions of two files; units of one name are one unit, and units without names are all different."""
    if not old.unit_names or not new.unit_names:  # nothing says which units are in both files
        later = replace(new, unit=new.unit + old.unit.amax() + 1, unit_names=())
        return LoggedDataset.cat([replace(old, unit_names=()), later])
    number = {name: k for k, name in enumerate(dict.fromkeys((*old.unit_names, *new.unit_names)))}
    of_new = torch.tensor([number[name] for name in new.unit_names], device=new.unit.device)
    later = replace(new, unit=of_new[new.unit], episode=new.episode + old.episode.amax() + 1)
    return LoggedDataset.cat([replace(part, unit_names=tuple(number)) for part in (old, later)])

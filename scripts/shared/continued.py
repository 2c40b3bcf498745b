"""resume=PATH with new data: a finished training goes on, and is judged before and after, on old and on new data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from envs.configuration import instantiate_stored
from envs.logged.evaluation import LogEvaluator
from envs.offers.evaluation.before_after import compare_in_market
from envs.offers.evaluation.season_evaluator import SeasonEvaluator
from envs.offers.logs import send_log
from rlcore.algorithm import Algorithm, NetworkAlgorithm
from rlcore.backends import distributed
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.paired import Halves, compare_on_log
from rlcore.runs.before_after import NEW, OLD, BeforeAfter, before_after_report, better
from rlcore.runs.report import Report
from scripts.shared.stored_runs import algorithm_class, fitting

FILES = ("log", "env.population.path", "env.population.base.path", "env.twin")  # keys of the files learned from

BLOCK = 1 << 20  # bytes of a file that are read at once


class Origin(NamedTuple):
    """The finished training that goes on: its checkpoint's path, state, configuration and files."""

    path: str
    agent: dict[str, Any]
    config: dict[str, Any]
    data: dict[str, dict[str, Any]]
    begins: bool  #: whether no training has gone on from it yet


class Ages(Protocol):
    """Old and new data that nothing was learned from."""

    what: str  #: the value by which policies are judged, in words

    def choose(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, tuple[float, float]]:
        """Return the values of both policies by age of the data, on data that serve the choice alone."""

    def judge(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, BeforeAfter]:
        """Return the values of both policies by age of the data, on data that served no choice."""


# ── what is new ─────────────────────────────────────────────────────────────────────────────────────────────────────
def files_of(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the files that a run learns from: for each key path and SHA-256, for a log of sends also its weeks."""
    found: dict[str, dict[str, Any]] = {}
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


def find_origin(cfg: DictConfig, name: str, state: dict | None) -> Origin | None:
    """Return the training that goes on with new data; None where a run starts, or goes on with its own data.

    The checkpoint of such a continuation already holds its origin, which is returned. Raises ValueError where new data
    make no sense.
    """
    if state is None:
        return None
    with fitting(cfg.resume):  # a checkpoint of another version names no data
        before, old, finished = (state[key] for key in ("before", "data", "finished"))
    if before:
        return Origin(**{**before, "begins": False})
    new = files_of(cfg)
    changed = [key for key in FILES if old.get(key, {}).get("sha256") != new.get(key, {}).get("sha256")]
    if not changed:
        return None
    key, where = changed[0], f"resume={cfg.resume}"
    if not finished:
        raise ValueError(f"{where}: {key} has other data, and that run had not finished: expected its own data first")
    if not issubclass(algorithm_class(instantiate(cfg.algo)), NetworkAlgorithm):
        raise ValueError(f"{where}: algo={name} can't go on with another {key}: expected init={cfg.resume}")
    if ("log" in old) != ("log" in new):
        raise ValueError(f"{where}: expected {'a log, as' if 'log' in old else 'no log, like'} that run had")
    if distributed.num_processes() > 1:
        raise ValueError(f"{where}: with new data one process goes on, got {distributed.num_processes()}")
    return Origin(cfg.resume, state["agent"], state["config"], old, begins=True)


def check_unchanged(origin: Origin, key: str) -> str:
    """Return the path of a file that the origin learned from; raise ValueError where it is not there as it was."""
    path = origin.data[key]["path"]
    if not Path(path).is_file() or digest(path) != origin.data[key]["sha256"]:
        raise ValueError(
            f"resume={origin.path}: {key}={path}: expected the file that it learned from as it was, to judge on old "
            "and on new data, and the new data in a file of their own"
        )
    return path


def holds_old(origin: Origin, path: str) -> bool:
    """Tell whether a log is taken to hold the old decisions too: both are logs of sends, and such a log grows."""
    return "weeks" in origin.data["log"] and send_log.is_send_log(path)


def with_old(origin: Origin, new: LoggedDataset, path: str, read: Callable[[str], LoggedDataset]) -> LoggedDataset:
    """Return old and new decisions to learn from; `read` reads a file."""
    if holds_old(origin, path):
        return new
    old = read(check_unchanged(origin, "log"))
    if not old.unit_names or not new.unit_names:  # nothing says which units are in both files
        later = replace(new, unit=new.unit + old.unit.amax() + 1, unit_names=())
        return LoggedDataset.cat([replace(old, unit_names=()), later])
    number = {name: k for k, name in enumerate(dict.fromkeys((*old.unit_names, *new.unit_names)))}
    of_new = torch.tensor([number[name] for name in new.unit_names], device=new.unit.device)
    later = replace(new, unit=of_new[new.unit], episode=new.episode + old.episode.amax() + 1)
    return LoggedDataset.cat([replace(part, unit_names=tuple(number)) for part in (old, later)])


# ── logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────
class LogAges:
    """Old and new decisions of a shop's sends, in one log, or of two files; half of the test side's units choose."""

    def __init__(self, origin: Origin, env: Any, path: str, evaluator: LogEvaluator):
        self.env, self.path, self.off_policy = env, path, evaluator.off_policy
        self.what = "value of an episode, net"
        self.old_path: str | None = None
        self.old_seasons = 0
        if holds_old(origin, path):
            self.old_seasons = origin.data["log"]["weeks"] // env.world.weeks
            seasons = -(-send_log.count_weeks(path) // env.world.weeks)
            if not 0 < self.old_seasons < seasons:
                raise ValueError(
                    f"resume={origin.path}: expected a log of sends of a whole season, and in {path} a later one, got "
                    f"{self.old_seasons} whole old seasons and {seasons} in all"
                )
        else:
            self.old_path = check_unchanged(origin, "log")

    def split(self, new: LoggedDataset, old: Callable[[str], LoggedDataset]) -> dict[str, LoggedDataset]:
        """Return decisions by age; `old` reads a side of the old file."""
        if self.old_path:
            return {OLD: old(self.old_path), NEW: new}
        is_old = new.episode < self.old_seasons
        return {OLD: new[is_old], NEW: new[~is_old]}

    @cached_property
    def halves(self) -> dict[str, Halves]:
        """Return the test side by age, dealt into halves."""

        def read(path: str) -> LoggedDataset:
            return self.env.read_log(path, "test")

        by_age = self.split(read(self.path), read)
        return {age: Halves.of(data, self.off_policy.seed) for age, data in by_age.items()}

    def choose(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, tuple[float, float]]:
        """Return the values of both policies on half of the customers."""
        found = {
            age: compare_on_log(self.off_policy, half.choosing, before.policy, after.policy)
            for age, half in self.halves.items()
        }
        return {age: (values.before[0], values.after[0]) for age, values in found.items()}

    def judge(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, BeforeAfter]:
        """Return the values of both policies on the other half."""
        return {
            age: compare_on_log(self.off_policy, half.judging, before.policy, after.policy)
            for age, half in self.halves.items()
        }


# ── customers ───────────────────────────────────────────────────────────────────────────────────────────────────────
class MarketAges:
    """Simulated seasons of old and of new customers, who respond by the old and by the new twin, if any."""

    what = "score of simulated seasons"

    def __init__(self, origin: Origin, device: torch.device, evaluator: SeasonEvaluator):
        for key in origin.data:
            check_unchanged(origin, key)
        with fitting(origin.path):
            make_env = instantiate_stored(origin.config["env"], origin.path)
            env = make_env(device, origin.config["seed"])
            env.load_fitted(origin.agent["env"])
        self.evaluators: dict[str, SeasonEvaluator] = {OLD: env.evaluation(env), NEW: evaluator}

    def choose(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, tuple[float, float]]:
        """Return the validation scores of both policies."""
        return {
            age: (evaluator.validate(before)[evaluator.headline], evaluator.validate(after)[evaluator.headline])
            for age, evaluator in self.evaluators.items()
        }

    def judge(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, BeforeAfter]:
        """Return the scores of both policies on test customers."""
        return {age: compare_in_market(evaluator, before, after) for age, evaluator in self.evaluators.items()}


class Continuation:
    """A finished training that goes on with new data."""

    def __init__(self, origin: Origin, before: NetworkAlgorithm, after: NetworkAlgorithm, ages: Ages):
        self.origin, self.before, self.after, self.ages = origin, before, after, ages

    @classmethod
    def of(cls, origin: Origin, algorithm: Algorithm, cfg: DictConfig) -> Continuation:
        """Prepare to judge an algorithm that goes on from an origin.

        Raises ValueError where nothing can judge it on old and new data.
        """
        assert isinstance(algorithm, NetworkAlgorithm)  # `find_origin` sees to it
        before = instantiate(cfg.algo, _convert_="all")(algorithm.env, cfg.seed)
        evaluator = algorithm.make_evaluator()
        with fitting(origin.path):
            before.load_policy(origin.agent)
        if cfg.log and isinstance(evaluator, LogEvaluator):
            return cls(origin, before, algorithm, LogAges(origin, algorithm.env, cfg.log, evaluator))
        if not cfg.log and isinstance(evaluator, SeasonEvaluator):
            return cls(origin, before, algorithm, MarketAges(origin, algorithm.env.device, evaluator))
        expected = "env/evaluation=log, which judges on logs of two sides" if cfg.log else "env=offers or offers_twin"
        raise ValueError(f"resume={origin.path}: nothing can judge on old and new data: expected {expected}")

    def finish(self) -> Report:
        """Judge before and after, and give the algorithm the better policy.

        The choice is made on other data than the report is of.
        """
        kept = better(self.ages.choose(self.before, self.after))
        report = before_after_report(self.ages.judge(self.before, self.after), self.ages.what, kept)
        if kept == "before":
            self.after.load_policy(self.origin.agent)
        return report

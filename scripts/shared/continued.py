"""resume=PATH with new data: a finished training goes on, and is judged before and after, on old and on new data."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from envs.configuration import instantiate_stored
from envs.logged.evaluation import LogEvaluator
from envs.offers.evaluation.evaluator import OffersEvaluator
from envs.offers.evaluation.two_policies import compare_in_market
from envs.offers.logs import send_log
from rlcore.algorithm import Algorithm
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.ope.paired import Halves, compare_on_log
from rlcore.runs.before_after import BeforeAfter, before_after_report, better, by_age
from rlcore.runs.report import Report
from scripts.shared.seen_data import Origin, check_unchanged, logs_apart
from scripts.shared.stored_runs import fitting


class Ages(Protocol):
    """Old and new data that serve to choose the better policy, and to judge both."""

    what: str  #: the value by which policies are judged, and on whom, in words
    old: list[str]  #: what the old data are, in words, the oldest first

    def choose(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, tuple[float, float]]:
        """Return the values of both policies by age of the data, on data that serve the choice alone."""

    def judge(self, before: NetworkAlgorithm, after: NetworkAlgorithm) -> dict[str, BeforeAfter]:
        """Return the values of both policies by age of the data, on data that served no choice."""


class LogAges:
    """Old and new decisions of a shop, in one log or in several files; half of the test side's units choose."""

    what = (
        "value of an episode, net, of units that nothing was learned from; half of them chose the policy that is kept, "
        "the table is of the others"
    )

    def __init__(self, origin: Origin, env: Any, path: str, evaluator: LogEvaluator):
        self.env, self.path, self.off_policy = env, path, evaluator.off_policy
        self.apart = [file["path"] for file in logs_apart(origin.seen, path)]  # as they were: `with_old` has seen to it
        self.old = list(self.apart)
        self.old_seasons = 0  # whole seasons of the log that were in it before
        grown = [stage["data"]["log"]["weeks"] for stage in origin.seen if "weeks" in stage["data"]["log"]]
        if grown and send_log.is_send_log(path):
            self.old_seasons = grown[-1] // env.world.weeks
            seasons = -(-send_log.count_weeks(path) // env.world.weeks)
            if not 0 < self.old_seasons < seasons:
                raise ValueError(
                    f"resume={origin.path}: expected a log of sends of a whole season, and in {path} a later one, got "
                    f"{self.old_seasons} whole old seasons and {seasons} in all"
                )
            self.old.append(f"the first {self.old_seasons} seasons of {path}")

    @cached_property
    def halves(self) -> dict[str, Halves]:
        """Return the test side by age, dealt into halves."""
        old, new = ([self.env.read_log(path, "test") for path in paths] for paths in (self.apart, [self.path]))
        if self.old_seasons:
            is_old = new[0].episode < self.old_seasons
            old, new = [*old, new[0][is_old]], [new[0][~is_old]]
        return by_age([Halves.of(data, self.off_policy.seed) for data in (*old, *new)])

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


class MarketAges:
    """Simulated seasons of old and of new customers, who respond by the old and by the new twins, if any."""

    what = (
        "score in simulated seasons of the test side's customers, whom no policy met in training, though a twin may "
        "have learned from them; validation customers, of the training side, chose the policy that is kept"
    )

    def __init__(self, origin: Origin, device: torch.device, evaluator: OffersEvaluator):
        evaluators, self.old = [], []
        for stage in origin.seen:
            paths = [check_unchanged(origin.path, key, file) for key, file in stage["data"].items()]
            with fitting(origin.path, {"env": stage["config"]["env"]}):
                env = instantiate_stored(stage["config"]["env"], origin.path)(device, stage["config"]["seed"])
                env.load_fitted(origin.agent["env"])
            evaluators.append(env.evaluation(env))
            self.old.append(", ".join(paths) or "drawn customers")
        self.evaluators: dict[str, OffersEvaluator] = by_age([*evaluators, evaluator])

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
        if not cfg.log and isinstance(evaluator, OffersEvaluator):
            return cls(origin, before, algorithm, MarketAges(origin, algorithm.env.device, evaluator))
        expected = "env/evaluation=log, which judges on logs of two sides" if cfg.log else "env=offers or offers_twin"
        raise ValueError(f"resume={origin.path}: nothing can judge on old and new data: expected {expected}")

    def finish(self) -> Report:
        """Judge before and after, and give the algorithm the better policy.

        The choice is made on other data than the report is of.
        """
        kept = better(self.ages.choose(self.before, self.after))
        found = self.ages.judge(self.before, self.after)
        sources = "; ".join(f"{age}: {old}" for age, old in zip(found, self.ages.old))
        report = before_after_report(found, f"{sources}\n{self.ages.what}", kept)
        if kept == "before":
            self.after.load_policy(self.origin.agent)
        return report

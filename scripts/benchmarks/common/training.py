"""Trainings within a benchmark, without a run's folder, and the evaluators of their environments."""

from __future__ import annotations

from typing import TypeVar

from envs.offers.env import OffersEnv
from envs.offers.evaluation.calibration import calibrate_price_drift
from envs.offers.evaluation.evaluator import OffersEvaluator
from rlcore.algorithm import Algorithm, OfflineAlgorithm
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs.logger import NullLogger
from rlcore.training_loop import TrainingLoop

Online = TypeVar("Online", bound=Algorithm)
Offline = TypeVar("Offline", bound=OfflineAlgorithm)


def train(algorithm: Online) -> Online:
    """Train an algorithm to the end, and return it."""
    TrainingLoop(algorithm, NullLogger()).run()
    return algorithm


def fit_to_log(algorithm: Offline, log: LoggedDataset) -> Offline:
    """Train an algorithm, such as a twin, on a log, and return it."""
    algorithm.set_dataset(log)
    return train(algorithm)


def evaluator_of(env: OffersEnv) -> OffersEvaluator:
    """Return the evaluator of an environment of offers."""
    evaluator = env.evaluation(env)
    assert isinstance(evaluator, OffersEvaluator)
    return evaluator


def drift_at_home(algorithm: NetworkAlgorithm) -> float:
    """Return the price drift of a policy, calibrated on customers of the environment that it was trained in."""
    evaluator = evaluator_of(algorithm.env)
    return calibrate_price_drift(evaluator, algorithm, evaluator.tuning_market(algorithm.env.budget))

"""The names that users import: `from crm_rl import train`, `from crm_rl import PPO, TrainingLoop, make_env`."""

from envs.base import FunctionalEnv, PricedEnv, Step, VectorEnv
from envs.configuration import compose_config, make_env
from envs.live.package import Package
from rlcore.algorithm import Algorithm, Evaluator, OfflineAlgorithm, Policy, ValuePolicy
from rlcore.backends.accelerate import accelerate
from rlcore.bandit import NeuralBandit
from rlcore.distributions import MaskedMultiDiscrete
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.networks import ActorCritic
from rlcore.offline import LoggedDataset
from rlcore.ope import OffPolicyEvaluator
from rlcore.ppo import PPO
from rlcore.rollout import Rollout, collect_rollout
from rlcore.runs.logger import MemoryLogger, NullLogger
from rlcore.runs.run_logger import RunLogger
from rlcore.training_loop import TrainingLoop
from scripts.python_api import FinishedRun, train

__all__ = [
    "PPO",
    "ActorCritic",
    "Algorithm",
    "Evaluator",
    "FinishedRun",
    "FunctionalEnv",
    "LoggedDataset",
    "MaskedMultiDiscrete",
    "MemoryLogger",
    "NetworkAlgorithm",
    "NeuralBandit",
    "NullLogger",
    "OffPolicyEvaluator",
    "OfflineAlgorithm",
    "Package",
    "Policy",
    "PricedEnv",
    "Rollout",
    "RunLogger",
    "Step",
    "TrainingLoop",
    "ValuePolicy",
    "VectorEnv",
    "accelerate",
    "collect_rollout",
    "compose_config",
    "load",
    "make_env",
    "train",
]

load = Package.load

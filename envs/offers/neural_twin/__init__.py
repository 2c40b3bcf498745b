"""The neural twin: customers simulated by networks of features and observable history, without hidden states."""

from envs.offers.neural_twin.counterfactual import Counterfactual
from envs.offers.neural_twin.customers import NeuralCustomers
from envs.offers.neural_twin.ensemble import NeuralEnsemble
from envs.offers.neural_twin.env import NeuralTwinEnv
from envs.offers.neural_twin.evaluation import NeuralTwinEvaluator
from envs.offers.neural_twin.fit import NeuralTwin
from envs.offers.neural_twin.predictions import NeuralPredictions

__all__ = [
    "Counterfactual",
    "NeuralCustomers",
    "NeuralEnsemble",
    "NeuralPredictions",
    "NeuralTwin",
    "NeuralTwinEnv",
    "NeuralTwinEvaluator",
]

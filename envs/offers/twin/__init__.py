"""The structural twin: an ensemble of the world's equations fitted to a log, and the population of the fit."""

from envs.offers.twin.checks.report import TwinEvaluator
from envs.offers.twin.ensemble import TwinEnsemble
from envs.offers.twin.predictions import ContactEffect, OutcomePrediction, PanelPredictions
from envs.offers.twin.structural_fit import StructuralTwin
from envs.offers.twin.structural_model import TwinPopulation
from envs.offers.twin.structural_predictions import StructuralPredictions

__all__ = [
    "ContactEffect",
    "OutcomePrediction",
    "PanelPredictions",
    "StructuralPredictions",
    "StructuralTwin",
    "TwinEnsemble",
    "TwinEvaluator",
    "TwinPopulation",
]

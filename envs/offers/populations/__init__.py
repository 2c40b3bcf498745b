"""Populations: where the customers of a season come from."""

from envs.offers.populations.base import Population, Priors, Sample
from envs.offers.populations.complete_journey import CompleteJourney
from envs.offers.populations.customer_table import CustomerTable
from envs.offers.populations.feature_transform import FeatureTransform
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.populations.synthetic import SyntheticPopulation

__all__ = [
    "CompleteJourney",
    "CustomerTable",
    "FeatureTransform",
    "ParameterRegression",
    "Population",
    "Priors",
    "Sample",
    "SyntheticPopulation",
]

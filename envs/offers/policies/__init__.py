"""Policies that serve a season, trained or not, and logging policies (logging_policies.py)."""

from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy, NoContact, RandomContacts, ResponseRanking
from envs.offers.policies.learned import DeployedPolicy, deploy_policy
from envs.offers.policies.rollover import planning_policy
from envs.offers.policies.wrappers import ReservationPricePolicy

__all__ = [
    "DeployedPolicy",
    "KnapsackPolicy",
    "NoContact",
    "RandomContacts",
    "ReservationPricePolicy",
    "ResponseRanking",
    "SeasonPolicy",
    "deploy_policy",
    "planning_policy",
]

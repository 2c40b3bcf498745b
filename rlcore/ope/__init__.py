"""Off-policy evaluation: estimators, intervals, outcome models, cross-fitting, and checks of propensities."""

from rlcore.ope.estimators import Terms
from rlcore.ope.evaluator import Evaluation, OffPolicyEvaluator
from rlcore.ope.outcome_models import Linear, Network
from rlcore.ope.propensity_checks import imbalance, significant

__all__ = ["Evaluation", "Linear", "Network", "OffPolicyEvaluator", "Terms", "imbalance", "significant"]

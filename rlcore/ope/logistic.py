"""Logistic regression of all actions' outcomes, each 0 or 1, on observations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlcore.ope.outcome_models import Linear, LinearActionModel

MAX_NEWTON_STEPS = 50
MAX_HALVINGS = 20
TOLERANCE = 1e-10  # of the loss, relative: smaller decreases end the fit
MIN_CURVATURE = 1e-12  # least p·(1 − p) of a row


class LogisticActionModel(LinearActionModel):
    """Probabilities that the outcomes of all actions are 1; their log-odds are linear in centred observations."""

    def __init__(self, inputs: int, actions: int, kinds: int):
        super().__init__(inputs, actions, kinds, scaled=False)

    def forward(self, obs: Tensor) -> Tensor:
        """Probabilities [B, A, K] of observations [B, D]."""
        log_odds = super().forward(obs)
        return log_odds.sigmoid()


class Logistic(Linear):
    """L2-penalised logistic regression, with the intercepts and slopes of an action as `Linear` has them.

    `ridge` is the penalty ½·ridge·‖slopes‖² in the observations' own units, 1/C of scikit-learn's LogisticRegression.
    Numbers should come standardised, and texts as columns of 0 and 1: divided by its small standard deviation, the
    column of a rare level would hardly be penalised.
    """

    def __init__(self, *, ridge: float, own: bool):
        super().__init__(ridge=ridge, own=own, scaled=False)

    def empty(self, inputs: int, actions: int, kinds: int) -> LogisticActionModel:
        """Build an unfitted model, to load a `state_dict` into."""
        return LogisticActionModel(inputs, actions, kinds)

    def fit_inputs(self, model: LinearActionModel, obs: Tensor) -> None:
        """Centre observations; their scale stays."""
        model.inputs.fit(obs)
        model.inputs.std = torch.ones_like(model.inputs.mean)

    def fit_weights(self, design: Tensor, outcome: Tensor, penalty: Tensor) -> Tensor:
        """Fit weights [F, K]; raise ValueError where an outcome is neither 0 nor 1."""
        is_binary = (outcome == 0) | (outcome == 1)
        if not is_binary.all():
            raise ValueError(f"logistic regression: expected outcomes 0 or 1, got {outcome[~is_binary][0].item():g}")
        kinds = [newton(design, y, penalty) for y in outcome.unbind(1)]
        return torch.stack(kinds, 1)


def newton(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Minimise the penalised logistic loss over weights [F]: Newton's method, with steps halved until the loss falls.

    x is [N, F] float64, y [N] is 0 or 1, penalty [F]. Where a column without a penalty separates the outcomes, no
    weights are best: its weight grows until the loss falls by less than TOLERANCE. Raises ValueError where columns
    without a penalty depend on each other.
    """
    weights: Tensor = x.new_zeros(x.shape[1])
    loss = logistic_loss(x, y, penalty, weights)
    for _ in range(MAX_NEWTON_STEPS):
        probability = (x @ weights).sigmoid()
        gradient = x.T @ (probability - y) + penalty * weights
        curvature = (probability * (1 - probability)).clamp_min(MIN_CURVATURE)
        hessian = x.T @ (curvature[:, None] * x) + torch.diag(penalty)
        direction, failed = torch.linalg.solve_ex(hessian, gradient)
        if failed or not direction.isfinite().all():
            raise ValueError("logistic regression: expected independent columns, or a penalty above 0; got no solution")
        step = 1.0
        for _ in range(MAX_HALVINGS):
            moved: Tensor = weights - step * direction
            moved_loss = logistic_loss(x, y, penalty, moved)
            if moved_loss <= loss:
                break
            step /= 2
        else:
            return weights  # no step lowers the loss further than rounding
        decrease = loss - moved_loss
        weights = moved
        loss = moved_loss
        if decrease <= TOLERANCE * loss.abs().clamp_min(1.0):
            return weights
    raise ValueError(f"logistic regression: no minimum after {MAX_NEWTON_STEPS} steps")


def logistic_loss(x: Tensor, y: Tensor, penalty: Tensor, weights: Tensor) -> Tensor:
    """Return Σ log(1 + exp(±log-odds)) + ½·Σ penalty·weights², a scalar."""
    log_odds = x @ weights
    fit: Tensor = (functional.softplus(log_odds) - y * log_odds).sum()
    size: Tensor = 0.5 * (penalty * weights.square()).sum()
    return fit + size

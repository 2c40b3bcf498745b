"""Logistic regression of actions' outcomes, against its own optimality condition, closed forms and scikit-learn."""

from __future__ import annotations

import pytest
import torch

from rlcore.ope.logistic import Logistic, logistic_loss, newton


def rows(n=3000, columns=4, seed=0):
    """Customers with a rare outcome whose log-odds are linear, with an effect of the action along one column."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(n, columns, generator=g)
    action = torch.randint(2, (n,), generator=g)
    log_odds = -2.0 + 0.5 * obs[:, 0] + action * (0.3 + 0.4 * obs[:, 1])
    outcome = (torch.rand(n, generator=g) < log_odds.sigmoid()).double()
    return obs, action, outcome


def test_no_gradient_of_the_penalised_loss_is_left():
    obs, _, outcome = rows()
    x = torch.cat((obs.double(), torch.ones(len(obs), 1, dtype=torch.float64)), 1)
    penalty = torch.tensor([5.0, 5.0, 5.0, 5.0, 0.0], dtype=torch.float64)
    weights = newton(x, outcome, penalty).requires_grad_()
    logistic_loss(x, outcome, penalty, weights).backward()
    assert weights.grad.abs().amax() < 1e-5  # of 3,000 rows


def test_a_strong_penalty_leaves_each_action_its_share_of_ones():
    obs, action, outcome = rows()
    model = Logistic(ridge=1e12, own=True)(obs, action, outcome[:, None], 2, torch.Generator())
    predicted = model(obs)[:, :, 0].double()
    for k in (0, 1):
        share = outcome[action == k].mean()
        torch.testing.assert_close(predicted[:, k], share.expand(len(obs)), rtol=1e-5, atol=1e-6)


def test_equal_to_scikit_learn_arm_by_arm():
    linear_model = pytest.importorskip("sklearn.linear_model")
    obs, action, outcome = rows()
    obs[:, 2] = (obs[:, 2] > 2).float()  # a rare level: its own units count in the penalty
    obs[:, 3] *= 0.1
    for k in (0, 1):
        of_arm = action == k
        nothing = torch.zeros(int(of_arm.sum()), dtype=torch.long)
        model = Logistic(ridge=30.0, own=True)(obs[of_arm], nothing, outcome[of_arm, None], 1, torch.Generator())
        x = obs[of_arm].double().numpy()
        peer = linear_model.LogisticRegression(C=1 / 30.0, tol=1e-10, max_iter=1000).fit(x, outcome[of_arm].numpy())
        wanted = torch.from_numpy(peer.predict_proba(x)[:, 1])
        torch.testing.assert_close(model(obs[of_arm])[:, 0, 0].double(), wanted, rtol=0, atol=1e-6)


def test_other_outcomes_are_refused():
    obs, action, outcome = rows(100)
    with pytest.raises(ValueError, match="expected outcomes 0 or 1, got 2"):
        Logistic(ridge=1.0, own=True)(obs, action, 2 * outcome[:, None], 2, torch.Generator())

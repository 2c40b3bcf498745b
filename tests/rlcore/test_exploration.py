"""Explorers: probabilities over valid actions only, against closed forms, loops and scalar references."""

from __future__ import annotations

import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import node
from rlcore.exploration.rules import floored, greedy, inverse_gap, thompson

NAMES = ("epsilon_greedy", "squarecb", "neural_ucb", "neural_ts", "neural_linear")


def part(name, *args, **changes):
    """Build conf/algo/NAME.yaml under algo=bandit with some of its keys replaced."""
    return instantiate(OmegaConf.merge(node(f"../algo/{name}", "algo=bandit"), changes), _convert_="all")(*args)


def values(obs_dim=4, nvec=(3, 2), seed=0, **changes):
    """A small network of action values in float64, with weights of some size."""
    torch.manual_seed(seed)
    return part("network/action_values", obs_dim, nvec, **{"hidden": [7, 5], "gain": 1.0, **changes}).double()


def explorer(name, net, **changes):
    return part(f"exploration/{name}", net, **changes).double()


def draws(seed=0, n=50, actions=6):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(n, actions, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, actions, generator=generator) < 0.6
    mask[:, 0] |= ~mask.any(1)
    mask[7] = torch.arange(actions) == 2
    return score, mask


# ── every explorer ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", NAMES)
def test_probabilities_are_over_valid_actions(name):
    net = values()
    explore = explorer(name, net)
    context, (_, mask) = torch.randn(50, 4, dtype=torch.float64), draws()
    action = mask.double().argmax(1)
    explore.update_design(net, context, action)
    explore.refit_posterior(net, context, action, torch.randn(50, dtype=torch.float64))
    probs = explore.probs(net, context, 0.3, mask, torch.Generator().manual_seed(0))
    torch.testing.assert_close(probs.sum(1), torch.ones(50, dtype=torch.float64))
    assert (probs[~mask] == 0).all() and (probs[mask] > 0).all()
    single = mask & (mask.sum(1, keepdim=True) == 1)
    assert single.any() and torch.allclose(probs[single], torch.ones_like(probs[single]))


@pytest.mark.parametrize("name", NAMES)
def test_a_cost_is_subtracted_from_the_prediction(name):
    net = values()
    explore = explorer(name, net)
    context, mask = torch.randn(20, 4, dtype=torch.float64), torch.ones(20, 6, dtype=torch.bool)
    cost = torch.full((20, 6), 1e3, dtype=torch.float64)
    cost[:, 4] = 0.0
    probs = explore.probs(net, context, cost, mask, torch.Generator().manual_seed(0))
    assert (probs.argmax(1) == 4).all() and (probs[:, 4] > 0.85).all()


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_squarecb_equals_the_scalar_rule():
    score, mask = draws()
    probs = inverse_gap(score, mask, 7.0)
    for row, valid, got in zip(score.tolist(), mask.tolist(), probs.tolist()):
        arms = [a for a, v in enumerate(valid) if v]
        top = max(arms, key=lambda a: row[a])
        expected = {a: 1 / (len(arms) + 7.0 * (row[top] - row[a])) for a in arms if a != top}
        expected[top] = 1 - sum(expected.values())
        assert got == pytest.approx([expected.get(a, 0.0) for a in range(6)], abs=1e-12)
    # γ = 0: uniform
    torch.testing.assert_close(inverse_gap(score, mask, 0.0), floored(greedy(score, mask), mask, 1.0))
    assert inverse_gap(score, mask, 1e12).amax(1).min() > 1 - 1e-9  # γ → ∞: greedy


def test_a_floor_leaves_epsilon_over_the_number_of_valid_actions():
    score, mask = draws()
    probs = floored(greedy(score, mask), mask, 0.1)
    least = 0.1 / mask.sum(1)
    top = score.masked_fill(~mask, -math.inf).argmax(1)
    rows = torch.arange(50)
    torch.testing.assert_close(probs[rows, top], 0.9 + least.double())
    assert torch.allclose(probs.where(mask, 1.0).amin(1), torch.where(mask.sum(1) > 1, least, 1.0).double())


def test_thompson_shares_follow_the_posterior():
    mean = torch.tensor([[0.0, 0.5, 9.0]], dtype=torch.float64)
    std = torch.tensor([[1.0, 0.7, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    probs = thompson(mean, std, mask, 40_000, torch.Generator().manual_seed(0))[0]
    wins = 0.5 * (1 + math.erf(0.5 / math.hypot(1.0, 0.7) / 2**0.5))  # P(N(.5, .7²) > N(0, 1))
    assert probs[1].item() == pytest.approx(wins, abs=0.01) and probs[2] == 0


# ── gradients of every action at once ───────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("activation", ["ReLU", "Tanh"])
@pytest.mark.parametrize("hidden", [[], [7], [7, 5]])
def test_batched_gradients_equal_looped_ones(activation, hidden):
    net = values(hidden=hidden, activation={"_target_": "hydra.utils.get_class", "path": f"torch.nn.{activation}"})
    context = torch.randn(3, 4, dtype=torch.float64)
    factors = net.gradients(context)
    for b in range(3):
        for a in range(6):
            looped = torch.autograd.grad(net(context[b : b + 1])[0, a], list(net.body.parameters()))
            weights = iter(looped)
            for delta, x in factors:
                together = torch.outer(delta[b, a], x[b])
                torch.testing.assert_close(together[:, :-1], next(weights))
                torch.testing.assert_close(together[:, -1], next(weights))


@pytest.mark.slow
def test_uncertainty_equals_the_matrix_form():
    net, generator = values(), torch.Generator().manual_seed(3)
    explore = explorer("neural_ucb", net, ridge=0.5, nu=2.0)
    context = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    action = torch.randint(6, (9,), generator=generator)

    def gradient(x, a):
        return torch.cat([g.flatten() for g in torch.autograd.grad(net(x[None])[0, a], list(net.body.parameters()))])

    design = torch.full_like(gradient(context[0], 0), 0.5)
    for x, a in zip(context, action):
        design += gradient(x, a).square()
    explore.update_design(net, context, action)
    got = explore.std(net, context)
    for b in range(9):
        for a in range(6):
            g = gradient(context[b], a)
            expected = (0.5 * 2.0 * g @ torch.linalg.inv(torch.diag(design)) @ g).sqrt()
            assert got[b, a].item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_bonus_does_not_depend_on_how_wide_the_network_is():
    stds = []
    for width in (16, 256):
        net = values(hidden=[width], seed=1)
        stds.append(explorer("neural_ucb", net).std(net, torch.randn(64, 4, dtype=torch.float64)).mean().item())
    assert 0.5 < stds[0] / stds[1] < 2


def test_ucb_picks_the_action_that_was_never_tried():
    net = values(hidden=[16])
    for parameter in net.body[-1].parameters():
        torch.nn.init.zeros_(parameter)  # all actions are predicted alike
    explore = explorer("neural_ucb", net)
    context = torch.randn(200, 4, dtype=torch.float64)
    tried = torch.arange(200) % 5 + (torch.arange(200) % 5 >= 3)  # all but action 3
    explore.update_design(net, context, tried)
    probs = explore.probs(net, context, 0.0, torch.ones(200, 6, dtype=torch.bool), torch.Generator())
    assert (probs.argmax(1) == 3).all()


# ── neural-linear ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_neural_linear_equals_ridge_regression_an_action():
    net = values()
    explore = explorer("neural_linear", net, ridge=0.3, noise_shape=4.0, noise_scale=2.0)
    generator = torch.Generator().manual_seed(5)
    context = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    action = torch.randint(5, (60,), generator=generator)
    reward = torch.randn(60, generator=generator, dtype=torch.float64)
    explore.refit_posterior(net, context, action, reward)
    features = net.features(context).detach()
    assert features.shape == (60, 6) and (features[:, -1] == 1).all()
    for a in range(6):
        x, r = features[action == a], reward[action == a]
        inverse = torch.linalg.inv(x.T @ x + 0.3 * torch.eye(6, dtype=torch.float64))
        mean = inverse @ x.T @ r
        noise = (2.0 + 0.5 * (r @ r - mean @ torch.linalg.inv(inverse) @ mean)) / (4.0 + len(r) / 2 - 1)
        torch.testing.assert_close(explore.mean[a], mean)
        torch.testing.assert_close(explore.factor[a].T @ explore.factor[a], inverse)
        assert explore.noise[a].item() == pytest.approx(noise.item())
    torch.testing.assert_close(explore.predict(net, context), features @ explore.mean.T)
    assert (explore.mean[5] == 0).all()  # never tried: the prior


def test_neural_linear_is_rebuilt_only_when_due():
    explore = explorer("neural_linear", values(), refit_every=3)
    assert [i for i in range(10) if explore.is_refit_due(i)] == [0, 3, 6, 9]

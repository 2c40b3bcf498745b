"""The redemption model against known probabilities and a scalar cross-entropy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import reference_rl as reference
from configs import load
from envs.offers.policies.redemption_model import RedemptionModel


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def redemption_model() -> RedemptionModel:
    """Build the shipped model, smaller, for contexts of 4, three offers and two channels."""
    torch.manual_seed(0)
    env = SimpleNamespace(context_dim=4, nvec=(3, 2), device=torch.device("cpu"), info_keys=("redeemed",))
    return load("../algo/auxiliary/redemption_model", env, hidden=[32], lr=1e-2)


def step(model: RedemptionModel, obs: Tensor, action: Tensor, redeemed: Tensor) -> Tensor:
    """Take one gradient step and return its loss."""
    return model.train_minibatch(obs, action, {"redeemed": redeemed})["losses/spend"]


def true_probabilities(context: Tensor) -> Tensor:
    """Compute redemption probabilities [4, 3, 2] of the four contexts: product of an offer's and a channel's share."""
    weights = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5).flip(0).float()
    offer, channel = torch.sigmoid(context @ weights + 0.5).split((3, 2), -1)
    return offer[:, :, None] * channel[:, None, :]


@pytest.mark.long
def test_known_probabilities_are_recovered():
    model, generator = redemption_model(), seeded()
    contexts = torch.eye(4)
    truth = true_probabilities(contexts)
    for i in range(500):
        model.anneal(i / 500)
        who = torch.randint(4, (4096,), generator=generator)
        action = torch.stack([torch.randint(n, (4096,), generator=generator) for n in (3, 2)], -1)
        redeemed = torch.rand(4096, generator=generator) < truth[who, action[:, 0], action[:, 1]]
        redeemed |= action[:, 0] == 0  # without an offer there is nothing to learn
        price = torch.randn(4096, 2, generator=generator)
        step(model, torch.cat((contexts[who], price), -1), action, redeemed)
    error = (model.predict(contexts) - truth)[:, 1:].abs()
    assert error.max() < 0.02 and truth[:, 1:].std() > 0.1
    torch.testing.assert_close(model.predict(contexts), model.log_prob(contexts).exp())


def test_prices_and_decisions_without_an_offer_are_ignored():
    generator = seeded()
    obs, action = torch.randn(64, 6, generator=generator), torch.randint(2, (64, 2), generator=generator)
    redeemed, nothing = torch.rand(64, generator=generator) < 0.5, action[:, 0] == 0
    one, other, third = redemption_model(), redemption_model(), redemption_model()
    for _ in range(5):
        loss = step(one, obs, action, redeemed)
        priced = torch.cat((obs[:, :4], 100 * torch.randn(64, 2, generator=generator)), -1)
        assert torch.equal(step(other, priced, action, redeemed ^ nothing), loss)
        step(third, obs, action, redeemed ^ ~nothing)
    weights = [torch.cat([p.flatten() for p in model.net.parameters()]) for model in (one, other, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(one.predict(obs), one.predict(obs[:, :4]))


def test_the_loss_is_the_cross_entropy_and_finite_where_it_is_certain():
    model = redemption_model()
    obs, action = torch.randn(50, 4, generator=seeded()), torch.tensor([[1, 0], [2, 1]]).repeat(25, 1)
    redeemed = torch.arange(50) % 3 == 0
    p = model.predict(obs)[torch.arange(50), action[:, 0], action[:, 1]].tolist()
    expected = -reference.mean(math.log(x if hit else 1 - x) for x, hit in zip(p, redeemed.tolist()))
    assert step(model, obs, action, redeemed).item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        model.net[-1].bias.fill_(200.0)  # certain that all is redeemed, and nothing was
    for _ in range(2):
        assert torch.isfinite(step(model, obs, action, torch.zeros(50, dtype=torch.bool)))
    assert torch.isfinite(step(model, obs, torch.zeros_like(action), redeemed))  # not one offer
    assert all(torch.isfinite(p).all() for p in model.net.parameters())


def test_an_environment_without_redemptions_is_refused():
    env = SimpleNamespace(context_dim=4, nvec=(3, 2), device=torch.device("cpu"), info_keys=("reward",))
    with pytest.raises(ValueError, match="^algo.auxiliary: this environment reports no redemptions"):
        load("../algo/auxiliary/redemption_model", env)


def test_a_restored_model_has_the_same_state():
    """A training that had ended and is resumed writes the checkpoint that it read."""
    model, restored = redemption_model(), redemption_model()
    model.anneal(0.75)
    step(model, torch.eye(4), torch.ones(4, 2, dtype=torch.long), torch.ones(4, dtype=torch.bool))
    restored.load_state_dict(model.state_dict())
    assert restored.state_dict()["optimizer"]["param_groups"] == model.state_dict()["optimizer"]["param_groups"]
    assert restored.lr.item() == pytest.approx(1e-2 / 4)
    restored.anneal(0.5)
    assert restored.optimizer.param_groups[0]["lr"].item() == pytest.approx(1e-2 / 2)

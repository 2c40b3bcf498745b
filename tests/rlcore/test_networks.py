"""Initialisation, running scales, schedules and the spend head against closed forms and scalar references."""
from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import reference_rl as reference
import torch
from configs import load
from torch import Tensor, nn

from rlcore.networks import ActorCritic, Tanh, tanh
from rlcore.normalization import ReturnScale, RunningNorm
from rlcore.schedules import AdaptiveKL, Linear
from envs.offers.policies.redemption_model import LearnedSpend

NVEC = (6, 5)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def network(obs_dim: int = 7, **changes) -> ActorCritic:
    """Build the shipped network from its YAML, of 32 hidden units, with some keys replaced."""
    torch.manual_seed(0)
    return load("../algo/net/medium", obs_dim, NVEC, **{"hidden": [32, 32], "first_bias": 0.0, **changes})


# ── networks ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("heads, size", [("independent", 11), ("joint", 30)])
def test_layers_are_orthogonal_with_their_gains(heads, size):
    net = network(heads=heads, policy_gain=0.05)
    for part, gain, out in ((net.actor, 0.05, size), (net.critic, 1.0, 1)):
        *hidden, last = [layer for layer in part if isinstance(layer, nn.Linear)]
        assert last.out_features == out and len(hidden) == 2
        for layer, expected in [*((h, math.sqrt(2)) for h in hidden), (last, gain)]:
            singular = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(singular, torch.full_like(singular, expected), rtol=1e-4, atol=0)
            assert (layer.bias == 0).all()


def offered() -> Tensor:
    """Make the offers' mask [1, 6, 5]: nothing has no channel, an offer has all."""
    mask = torch.ones(1, *NVEC, dtype=torch.bool)
    mask[:, 0, 1:] = False
    return mask


@pytest.mark.parametrize("heads", ["independent", "joint"])
@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_first_bias_is_the_first_choices_head_start(heads, bias):
    net = network(heads=heads, policy_gain=0.0, first_bias=bias)
    probs = net.policy(torch.zeros(1, 7), offered()).probs.view(NVEC)
    start = math.exp(bias)
    assert probs[0].sum().item() == pytest.approx(start / (start + 25), rel=1e-5)
    torch.testing.assert_close(probs[1:], torch.full((5, 5), 1 / (start + 25)))  # the rest is uniform


def test_independent_heads_add_and_joint_heads_are_free(form):
    obs = torch.randn(9, 7, generator=seeded())
    for heads, interacts in (("independent", False), ("joint", True)):
        table = network(heads=heads, policy_gain=1.0).logits(obs).view(9, *NVEC)
        mixed = table[:, 1:, 1:] - table[:, :1, 1:] - table[:, 1:, :1] + table[:, :1, :1]
        assert (mixed.abs().amax() > 1e-3) == interacts
    with pytest.raises(ValueError, match="^algo.net.heads: .*'both'"):
        network(heads="both")


@pytest.mark.parametrize("heads", ["independent", "joint"])
def test_logits_are_the_same_in_either_form(heads, monkeypatch):
    net, obs = network(heads=heads, policy_gain=1.0), torch.randn(9, 7, generator=seeded())
    logits = net.logits(obs)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(net.logits(obs), logits)


def test_actor_and_critic_share_no_weights():
    net, obs = network(), torch.randn(9, 7, generator=seeded())
    net.value(obs).sum().backward()
    assert all(p.grad is None for p in net.actor.parameters())
    assert all((p.grad != 0).any() for p in net.critic.parameters())
    net.zero_grad()
    net.policy(obs, offered().expand(9, -1, -1)).log_probs[:, 0].sum().backward()
    assert all(p.grad is None for p in net.critic.parameters())
    assert all((p.grad != 0).any() for p in net.actor.parameters())


def test_value_takes_any_leading_shape():
    net, obs = network(normalize_obs=True), torch.randn(4, 3, 7, generator=seeded())
    net.normalize.update(10 * obs + 5)
    assert net.value(obs).shape == (4, 3)
    torch.testing.assert_close(net.value(obs)[2, 1], net.value(obs[2, 1][None])[0])


def test_both_networks_see_normalised_observations():
    net, plain = network(normalize_obs=True), network()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "normalize" not in k})
    obs = 30 + 9 * torch.randn(500, 7, generator=seeded())
    net.normalize.update(obs)
    for function in ("logits", "value"):
        torch.testing.assert_close(getattr(net, function)(obs), getattr(plain, function)(net.normalize(obs)))


# ── running scales ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_running_norm_equals_the_moments_of_all_it_has_seen():
    norm, generator = RunningNorm(4, clip=10.0), seeded()
    batches = [(i + 1) * torch.randn(*shape, 4, generator=generator) + 20 - 5 * i
               for i, shape in enumerate([(3, 5), (1,), (200,), (2, 3, 4)])]
    for batch in batches:
        norm.update(batch)
    seen = np.concatenate([b.reshape(-1, 4).double().numpy() for b in batches])
    np.testing.assert_allclose(norm.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var, seen.var(0), rtol=1e-4)
    assert norm.count == len(seen)
    x = batches[2]
    np.testing.assert_allclose(norm(x), (x.numpy() - seen.mean(0)) / seen.std(0), atol=1e-4)


def test_running_norm_is_frozen_in_forward_clips_and_travels():
    norm, x = RunningNorm(2, clip=1.5), torch.randn(50, 2, generator=seeded())
    norm.update(x)
    before = copy.deepcopy(norm.state_dict())
    for mode in (True, False):
        out = norm.train(mode)(100 * x)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())
    assert set(before) == {"mean", "var", "count"} and out.abs().max() == 1.5
    other = RunningNorm(2, clip=1.5)
    other.load_state_dict(before)
    assert torch.equal(other(x), norm(x))


def test_running_norm_of_a_constant_is_finite():
    norm = RunningNorm(1, clip=10.0)
    norm.update(torch.full((100, 1), 3.0))
    assert norm(torch.full((5, 1), 3.0)).abs().max() < 1e-3


@pytest.mark.parametrize("center", [False, True])
def test_return_scale_equals_the_scalar_reference_over_rollouts(center):
    gamma, generator = 0.9, seeded()
    scale, carried, seen, rewards = ReturnScale(3, gamma, center), [0.0] * 3, [], []
    for _ in range(3):  # what runs is carried from one rollout to the next
        reward = 2 * torch.randn(7, 3, generator=generator) + 1
        done = torch.rand(7, 3, generator=generator) < 0.2
        scale.update(reward, done)
        rewards += reward.flatten().tolist()
        reward = reward - center * np.mean(rewards).item()
        rows, carried = reference.discounted(reward.tolist(), done.tolist(), gamma, carried)
        seen += sum(rows, [])
        assert scale.carried.tolist() == pytest.approx(carried, abs=1e-5)
        given = reward + center * np.mean(rewards).item()
        torch.testing.assert_close(scale(given), reward / np.std(seen).item(), rtol=1e-4, atol=1e-6)
    assert (scale(torch.zeros(1)) == 0) != center  # divided, not centred
    before = copy.deepcopy(scale.state_dict())
    scale(reward)
    assert all(torch.equal(before[k], v) for k, v in scale.state_dict().items()) and "carried" in before


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear_schedule(final):
    lr = torch.tensor(0.5)
    for progress, share in ((0.0, 1.0), (0.5, (1 + final) / 2), (1.0, final)):
        Linear(final=final)(lr, 0.02, progress, torch.tensor(9.9))
        assert lr.item() == pytest.approx(0.02 * share)


@pytest.mark.parametrize("kl, change", [
    (0.0021, 1 / 1.5), (0.0019, 1.0), (0.00051, 1.0), (0.00049, 1.5), (math.nan, 1.0)])
def test_adaptive_kl_schedule(kl, change):
    schedule = AdaptiveKL(target=0.001, factor=1.5, low=1e-5, high=1e-2)
    for first, expected in ((1e-3, 1e-3 * change), (1e-2, min(1e-2, 1e-2 * change)), (1e-5, max(1e-5, 1e-5 * change))):
        lr = torch.tensor(first)
        schedule(lr, 123.0, 0.5, torch.tensor(kl))
        assert lr.item() == pytest.approx(expected)


# ── spend ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def spend_head() -> LearnedSpend:
    """Build the shipped spend head, smaller, for contexts of 4, three offers and two channels."""
    torch.manual_seed(0)
    return load("../algo/spend/learned", 4, (3, 2), torch.device("cpu"), hidden=[32], lr=1e-2)


def true_redeem(context: Tensor) -> Tensor:
    """Compute redemption probabilities [4, 3, 2] of the four contexts: product of an offer's and a channel's share."""
    weights = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5).flip(0).float()
    offer, channel = torch.sigmoid(context @ weights + 0.5).split((3, 2), -1)
    return offer[:, :, None] * channel[:, None, :]


def test_spend_recovers_known_probabilities():
    head, generator = spend_head(), seeded()
    contexts = torch.eye(4)
    truth = true_redeem(contexts)
    for i in range(500):
        head.anneal(i / 500)
        who = torch.randint(4, (4096,), generator=generator)
        action = torch.stack([torch.randint(n, (4096,), generator=generator) for n in (3, 2)], -1)
        redeemed = torch.rand(4096, generator=generator) < truth[who, action[:, 0], action[:, 1]]
        redeemed |= action[:, 0] == 0  # without an offer there is nothing to learn
        price = torch.randn(4096, 2, generator=generator)
        head.learn(torch.cat((contexts[who], price), -1), action, redeemed)
    error = (head.redeem(contexts) - truth)[:, 1:].abs()
    assert error.max() < 0.02 and truth[:, 1:].std() > 0.1
    torch.testing.assert_close(head.redeem(contexts), head.log_redeem(contexts).exp())


def test_spend_ignores_prices_and_decisions_without_an_offer():
    generator = seeded()
    obs, action = torch.randn(64, 6, generator=generator), torch.randint(2, (64, 2), generator=generator)
    redeemed, nothing = torch.rand(64, generator=generator) < 0.5, action[:, 0] == 0
    one, other, third = spend_head(), spend_head(), spend_head()
    for _ in range(5):
        loss = one.learn(obs, action, redeemed)
        priced = torch.cat((obs[:, :4], 100 * torch.randn(64, 2, generator=generator)), -1)
        assert torch.equal(other.learn(priced, action, redeemed ^ nothing), loss)
        third.learn(obs, action, redeemed ^ ~nothing)
    weights = [torch.cat([p.flatten() for p in head.parameters()]) for head in (one, other, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(one.redeem(obs), one.redeem(obs[:, :4]))


def test_spend_loss_is_the_cross_entropy_and_finite_where_it_is_certain():
    head = spend_head()
    obs, action = torch.randn(50, 4, generator=seeded()), torch.tensor([[1, 0], [2, 1]]).repeat(25, 1)
    redeemed = torch.arange(50) % 3 == 0
    p = head.redeem(obs)[torch.arange(50), action[:, 0], action[:, 1]].tolist()
    expected = -reference.mean(math.log(x if hit else 1 - x) for x, hit in zip(p, redeemed.tolist()))
    assert head.learn(obs, action, redeemed).item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        head.net[-1].bias.fill_(200.0)  # certain that all is redeemed, and nothing was
    for _ in range(2):
        assert torch.isfinite(head.learn(obs, action, torch.zeros(50, dtype=torch.bool)))
    assert torch.isfinite(head.learn(obs, torch.zeros_like(action), redeemed))  # not one offer
    assert all(torch.isfinite(p).all() for p in head.parameters())


def test_the_fast_tanh_is_tanh_and_so_is_its_gradient(form):
    x = torch.linspace(-20, 20, 4001, requires_grad=True)
    assert (Tanh()(x) - x.double().tanh()).abs().max() < 5e-7 and Tanh()(x).abs().max() <= 1
    if form == "compiled":  # near 0 too: the other form's error there is that of 1 − σ
        small = torch.logspace(-20, 0, 2001)
        assert (tanh(small) / small.double().tanh() - 1).abs().max() < 5e-7
    slope, = torch.autograd.grad(Tanh()(x).sum(), x)
    assert (slope - (1 - x.double().tanh().square())).abs().max() < 1e-6
    with torch.no_grad():
        assert torch.equal(Tanh()(x), tanh(x))

"""Initialisation, running scales, schedules and activations against closed forms and scalar references."""

from __future__ import annotations

import copy
import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference_rl as reference
from configs import load
from rlcore.backends.compilation import CompiledActorCritic, RationalTanh, rational_tanh
from rlcore.networks import ActorCritic, Tanh
from rlcore.normalization import RewardNormalizer, RunningNormalizer
from rlcore.schedules import AdaptiveKL, LinearDecay

NVEC = (6, 5)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def network(obs_dim: int = 7, **changes) -> ActorCritic:
    """Build the shipped network from its YAML, of 32 hidden units, with some keys replaced."""
    torch.manual_seed(0)
    return load("../algo/network/actor_critic", obs_dim, NVEC, **{"hidden": [32, 32], "first_bias": 0.0, **changes})


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
    probs = net.distribution(torch.zeros(1, 7), offered()).probs.view(NVEC)
    start = math.exp(bias)
    assert probs[0].sum().item() == pytest.approx(start / (start + 25), rel=1e-5)
    torch.testing.assert_close(probs[1:], torch.full((5, 5), 1 / (start + 25)))  # the rest is uniform


@pytest.mark.parametrize("form", [lambda net: net, CompiledActorCritic])
def test_independent_heads_add_and_joint_heads_are_free(form):
    obs = torch.randn(9, 7, generator=seeded())
    for heads, interacts in (("independent", False), ("joint", True)):
        table = form(network(heads=heads, policy_gain=1.0)).logits(obs).view(9, *NVEC)
        mixed = table[:, 1:, 1:] - table[:, :1, 1:] - table[:, 1:, :1] + table[:, :1, :1]
        assert (mixed.abs().amax() > 1e-3) == interacts
    with pytest.raises(ValueError, match="^algo.network.heads: .*'both'"):
        network(heads="both")


@pytest.mark.parametrize("activation", [{}, {"activation": {"path": "rlcore.networks.Tanh"}}])
@pytest.mark.parametrize("heads", ["independent", "joint"])
def test_the_form_for_a_compiler_is_the_network(heads, activation):
    """On the same parameters, under the same names, with the same outputs and gradients."""
    net = network(heads=heads, policy_gain=1.0, normalize_obs=True, **activation)
    obs = torch.randn(9, 7, generator=seeded())
    compiled, mask = CompiledActorCritic(net), offered().expand(9, -1, -1)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), compiled.state_dict().values()))
    assert list(net.state_dict()) == list(compiled.state_dict()) and all(
        a is b for a, b in zip(net.parameters(), compiled.parameters())
    )
    gradients = []
    for form in (net, compiled):
        u = torch.rand(9, generator=seeded())
        action, log_prob = form.act(obs, mask, u)
        loss = log_prob.sum() + form.value(obs).square().sum() + form.distribution(obs, mask).entropy().sum()
        gradients.append([action, loss, *torch.autograd.grad(loss, list(net.parameters()))])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_actor_and_critic_share_no_weights():
    net, obs = network(), torch.randn(9, 7, generator=seeded())
    net.value(obs).sum().backward()
    assert all(p.grad is None for p in net.actor.parameters())
    assert all((p.grad != 0).any() for p in net.critic.parameters())
    net.zero_grad()
    net.distribution(obs, offered().expand(9, -1, -1)).log_probs[:, 0].sum().backward()
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
    norm, generator = RunningNormalizer(4, clip=10.0), seeded()
    batches = [
        (i + 1) * torch.randn(*shape, 4, generator=generator) + 20 - 5 * i
        for i, shape in enumerate([(3, 5), (1,), (200,), (2, 3, 4)])
    ]
    for batch in batches:
        norm.update(batch)
    seen = np.concatenate([b.reshape(-1, 4).double().numpy() for b in batches])
    np.testing.assert_allclose(norm.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var, seen.var(0), rtol=1e-4)
    assert norm.count == len(seen)
    x = batches[2]
    np.testing.assert_allclose(norm(x), (x.numpy() - seen.mean(0)) / seen.std(0), atol=1e-4)


def test_running_norm_is_frozen_in_forward_clips_and_travels():
    norm, x = RunningNormalizer(2, clip=1.5), torch.randn(50, 2, generator=seeded())
    norm.update(x)
    before = copy.deepcopy(norm.state_dict())
    for mode in (True, False):
        out = norm.train(mode)(100 * x)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())
    assert set(before) == {"mean", "var", "count"} and out.abs().max() == 1.5
    other = RunningNormalizer(2, clip=1.5)
    other.load_state_dict(before)
    assert torch.equal(other(x), norm(x))


def test_running_norm_of_a_constant_is_finite():
    norm = RunningNormalizer(1, clip=10.0)
    norm.update(torch.full((100, 1), 3.0))
    assert norm(torch.full((5, 1), 3.0)).abs().max() < 1e-3


@pytest.mark.parametrize("center", [False, True])
def test_return_scale_equals_the_scalar_reference_over_rollouts(center):
    gamma, generator = 0.9, seeded()
    scale, carried, seen, rewards = RewardNormalizer(3, gamma, center), [0.0] * 3, [], []
    for _ in range(3):  # what runs is carried from one rollout to the next
        reward = 2 * torch.randn(7, 3, generator=generator) + 1
        done = torch.rand(7, 3, generator=generator) < 0.2
        scale.update(reward, done)
        rewards += reward.flatten().tolist()
        reward = reward - center * np.mean(rewards).item()
        rows, carried = reference.discounted(reward.tolist(), done.tolist(), gamma, carried)
        seen += chain.from_iterable(rows)
        assert scale.return_so_far.tolist() == pytest.approx(carried, abs=1e-5)
        given = reward + center * np.mean(rewards).item()
        torch.testing.assert_close(scale(given), reward / np.std(seen).item(), rtol=1e-4, atol=1e-6)
    assert (scale(torch.zeros(1)) == 0) != center  # divided, not centred
    before = copy.deepcopy(scale.state_dict())
    scale(reward)
    assert all(torch.equal(before[k], v) for k, v in scale.state_dict().items()) and "return_so_far" in before


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear_schedule(final):
    lr = torch.tensor(0.5)
    for progress, share in ((0.0, 1.0), (0.5, (1 + final) / 2), (1.0, final)):
        LinearDecay(final=final)(lr, 0.02, progress, torch.tensor(9.9))
        assert lr.item() == pytest.approx(0.02 * share)


@pytest.mark.parametrize(
    "kl, change", [(0.0021, 1 / 1.5), (0.0019, 1.0), (0.00051, 1.0), (0.00049, 1.5), (math.nan, 1.0)]
)
def test_adaptive_kl_schedule(kl, change):
    schedule = AdaptiveKL(target=0.001, factor=1.5, low=1e-5, high=1e-2)
    for first, expected in ((1e-3, 1e-3 * change), (1e-2, min(1e-2, 1e-2 * change)), (1e-5, max(1e-5, 1e-5 * change))):
        lr = torch.tensor(first)
        schedule(lr, 123.0, 0.5, torch.tensor(kl))
        assert lr.item() == pytest.approx(expected)


@pytest.mark.parametrize("form", [Tanh, RationalTanh])
def test_tanh_in_either_form_is_tanh_and_so_is_its_gradient(form):
    x = torch.linspace(-20, 20, 4001, requires_grad=True)
    assert (form()(x) - x.double().tanh()).abs().max() < 5e-7 and form()(x).abs().max() <= 1
    (slope,) = torch.autograd.grad(form()(x).sum(), x)
    assert (slope - (1 - x.double().tanh().square())).abs().max() < 1e-6


def test_the_rational_tanh_is_tanh_near_zero_too():
    """The other form's error there is that of 1 − σ."""
    small = torch.logspace(-20, 0, 2001)
    assert (rational_tanh(small) / small.double().tanh() - 1).abs().max() < 5e-7

"""PPO's losses against scalar references, their exact limits, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reference_rl as reference
from rlcore import losses

CLIP = 0.2
INPUTS = ("log_prob", "old_log_prob", "advantage", "entropy", "value", "old_value", "target")  # of losses.ppo
OPTIONS = {"clip": CLIP, "clip_value": 0.3, "vf_coef": 0.7, "ent_coef": 0.05}


def draw(n: int, *scales: float, seed: int = 0) -> list[Tensor]:
    """Draw normals [n] of the given scales, in float64 and with gradients."""
    generator = torch.Generator().manual_seed(seed)
    return [(s * torch.randn(n, generator=generator, dtype=torch.float64)).requires_grad_() for s in scales]


def ppo_inputs(n: int, seed: int = 0) -> list[Tensor]:
    """Draw what losses.ppo takes before the mask; ratios, values and their clipped ones fall on both sides."""
    return draw(n, 0.5, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, seed=seed)


def half(n: int) -> Tensor:
    """Mask every other row."""
    return torch.arange(n) % 2 == 0


def test_ratio_one_is_the_plain_policy_gradient():
    (advantage,) = draw(100, 3.0)
    same = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    loss = losses.policy_loss(same, advantage.detach(), CLIP)
    torch.testing.assert_close(loss, -advantage.mean())
    loss.backward()
    torch.testing.assert_close(same.grad, -advantage.detach() / 100)
    assert losses.clip_fraction(same, CLIP) == 0
    assert all((kl(same) == 0).all() for kl in (losses.kl_k1, losses.kl_k3))


@pytest.mark.parametrize("masked", [False, True])
def test_policy_loss_and_clip_fraction_equal_the_scalar_reference(masked):
    log_ratio, advantage = draw(200, 0.4, 1.0)
    mask = half(200) if masked else None
    x, a = (t.detach()[slice(None) if mask is None else mask].tolist() for t in (log_ratio, advantage))
    assert losses.policy_loss(log_ratio, advantage, CLIP, mask).item() == pytest.approx(
        reference.policy_loss(x, a, CLIP), rel=1e-12
    )
    outside = reference.mean(not 1 - CLIP <= reference.exp(v) <= 1 + CLIP for v in x)
    assert losses.clip_fraction(log_ratio, CLIP, mask).item() == pytest.approx(outside, rel=1e-12)
    assert 0.2 < outside < 0.8


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.1, 1.0, True), (0.9, -1.0, True)],
)
def test_gradient_is_exactly_zero_where_clipped_and_adverse(ratio, advantage, moves):
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    losses.policy_loss(log_ratio, torch.tensor([advantage], dtype=torch.float64), CLIP).backward()
    assert log_ratio.grad.item() == (pytest.approx(-advantage * ratio) if moves else 0)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_value_loss_equals_the_scalar_reference(clip, masked):
    inputs = draw(200, 1.0, 1.0, 1.0)
    mask = half(200) if masked else None
    rows = (t.detach()[slice(None) if mask is None else mask].tolist() for t in inputs)
    assert losses.value_loss(*inputs, clip, mask).item() == pytest.approx(reference.value_loss(*rows, clip), rel=1e-12)


@pytest.mark.parametrize(
    "value, old, target, expected, gradient",
    [
        (1.1, 1.0, 0.0, 1.21 / 2, 1.1),  # near its old one: nothing is clipped
        (2.0, 1.0, 3.0, 1.7**2 / 2, 0.0),  # moved towards the target, too far: the clipped error is larger and constant
        (2.0, 1.0, 0.0, 4.0 / 2, 2.0),  # moved away from the target: the true error is larger
    ],
)
def test_both_branches_of_value_clipping(value, old, target, expected, gradient):
    value, old, target = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (value, old, target))
    loss = losses.value_loss(value, old, target, 0.3)
    loss.backward()
    assert (loss.item(), value.grad.item()) == pytest.approx((expected, gradient))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, m: losses.masked_mean(x * y, m),
        lambda x, y, m: losses.policy_loss(x, y, CLIP, m),
        lambda x, y, m: losses.value_loss(x, torch.zeros_like(x), y, None, m),
        lambda x, y, m: losses.value_loss(x, torch.zeros_like(x), y, 0.3, m),
        lambda x, y, m: losses.masked_mean(losses.kl_k3(x), m),
        lambda x, y, m: losses.explained_variance(x, y, m),
    ],
    ids=["mean", "policy", "value", "clipped", "k3", "explained"],
)
@pytest.mark.parametrize("outside", [0.0, 50.0, -50.0])
def test_masked_rows_change_nothing_and_get_exactly_zero_gradient(loss, outside):
    x, y = draw(40, 1.0, 1.0)
    mask = half(40)
    with torch.no_grad():
        x[~mask], y[~mask] = outside, -outside
    masked = loss(x, y, mask)
    torch.testing.assert_close(masked, loss(x[mask], y[mask], None), rtol=1e-12, atol=0)
    masked.backward()
    for t in (x, y):
        if t.grad is not None:
            assert (t.grad[~mask] == 0).all() and (t.grad[mask] != 0).any()


@pytest.mark.parametrize("rubbish", [float("inf"), float("-inf"), float("nan")])
def test_masked_mean_does_not_see_infinities_outside_the_mask(rubbish):
    x = torch.tensor([1.0, rubbish, 3.0], requires_grad=True)
    mean = losses.masked_mean(x, torch.tensor([True, False, True]))
    mean.backward()
    assert mean == 2 and x.grad.tolist() == [0.5, 0.0, 0.5]


def test_overflowing_ratio_outside_the_mask_gets_zero_gradient():
    log_ratio = torch.tensor([0.1, 100.0], requires_grad=True)
    losses.policy_loss(log_ratio, torch.tensor([1.0, -1.0]), CLIP, torch.tensor([True, False])).backward()
    assert log_ratio.grad[1] == 0


def test_masked_mean_takes_weights_and_is_zero_on_an_empty_mask():
    (x,) = draw(5, 1.0)
    weights = torch.tensor([0.0, 0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(losses.masked_mean(x, weights), (x * weights).sum() / 3.5)
    empty = losses.masked_mean(x, torch.zeros(5, dtype=torch.bool))
    empty.backward()
    assert empty == 0 and (x.grad == 0).all()


def test_entropy_bonus_moves_logits_towards_uniform():
    logits = torch.tensor([2.0, 0.5, -1.0, -1.5], dtype=torch.float64, requires_grad=True)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum()[None]
    zero = torch.zeros(1, dtype=torch.float64)
    inputs = {**dict.fromkeys(INPUTS, zero), "entropy": entropy}
    loss, _ = losses.ppo(**inputs, mask=None, **OPTIONS | {"ent_coef": 1.0})
    loss.backward()
    p, q = log_p.exp().detach(), (logits - logits.grad).detach().softmax(-1)
    torch.testing.assert_close(logits.grad, p * (p.log() + entropy[0].detach()))  # −∂H/∂logits in closed form
    assert logits.grad[0] > 0 > logits.grad[3]
    assert reference.entropy(p.tolist()) < reference.entropy(q.tolist()) < reference.log(4)


@pytest.mark.parametrize("step", [1.0, 0.1, 0.01])
def test_kl_estimators_against_the_exact_kl_of_a_categorical(step):
    old, change = draw(6, 1.0, step)
    old_log_p, log_p = old.detach().log_softmax(-1), (old + change).detach().log_softmax(-1)
    p, log_ratio = old_log_p.exp(), log_p - old_log_p
    exact = sum(p_i * (a - b) for p_i, a, b in zip(p.tolist(), old_log_p.tolist(), log_p.tolist()))
    expected = {kl.__name__: (p * kl(log_ratio)).sum().item() for kl in (losses.kl_k1, losses.kl_k3)}
    assert expected["kl_k1"] == pytest.approx(exact, rel=1e-9)
    assert expected["kl_k3"] == pytest.approx(exact, rel=1e-9)
    assert (losses.kl_k3(log_ratio) >= 0).all()


def test_explained_variance():
    target, noise = (t.detach() for t in draw(1000, 2.0, 1.0))
    assert losses.explained_variance(target + 5, target).item() == pytest.approx(1)  # a constant shift explains all
    assert losses.explained_variance(torch.full_like(target, 3.0), target).item() == pytest.approx(0)
    assert losses.explained_variance(-target, target).item() == pytest.approx(-3)
    expected = 1 - noise.numpy().var() / target.numpy().var()
    assert losses.explained_variance(target + noise, target).item() == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0.0, 2.0, 0.1])
def test_explained_variance_of_a_constant_target_is_zero(constant):
    value = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert losses.explained_variance(value, torch.full((1000,), constant)) == 0


@pytest.mark.parametrize("mask", [None, half(12)], ids=["all", "masked"])
def test_gradients_equal_finite_differences(mask):
    log_ratio, advantage, value, old, target = draw(12, 0.5, 1.0, 1.0, 1.0, 1.0, seed=1)
    assert torch.autograd.gradcheck(lambda x, a: losses.policy_loss(x, a, CLIP, mask), (log_ratio, advantage))
    for clip in (None, 0.3):
        assert torch.autograd.gradcheck(lambda *x: losses.value_loss(*x, clip, mask), (value, old, target))
    for kl in (losses.kl_k1, losses.kl_k3):
        assert torch.autograd.gradcheck(kl, log_ratio)

    def loss(*inputs):
        return losses.ppo(**dict(zip(INPUTS, inputs)), mask=mask, **OPTIONS)[0]

    assert torch.autograd.gradcheck(loss, ppo_inputs(12, seed=2))


def test_ppo_is_the_sum_of_its_terms():
    n, mask = 200, half(200)
    inputs = ppo_inputs(n)
    loss, metrics = losses.ppo(**dict(zip(INPUTS, inputs)), mask=mask, **OPTIONS)
    log_prob, old_log_prob, advantage, entropy, value, old_value, target = (x.tolist() for x in inputs)
    log_ratio = [a - b for a, b in zip(log_prob, old_log_prob)][::2]
    expected = {
        "policy_loss": reference.policy_loss(log_ratio, advantage[::2], CLIP),
        "value_loss": reference.value_loss(value, old_value, target, OPTIONS["clip_value"]),  # everywhere
        "entropy": reference.mean(entropy[::2]),
        "old_approx_kl": -reference.mean(log_ratio),
        "approx_kl": reference.mean(reference.exp(x) - 1 - x for x in log_ratio),
        "clipfrac": reference.mean(abs(reference.exp(x) - 1) > CLIP for x in log_ratio),
    }
    assert {name: x.item() for name, x in metrics.items()} == pytest.approx(expected, rel=1e-9)
    assert not any(x.requires_grad for x in metrics.values())
    total = (
        expected["policy_loss"]
        + OPTIONS["vf_coef"] * expected["value_loss"]
        - OPTIONS["ent_coef"] * expected["entropy"]
    )
    assert loss.item() == pytest.approx(total, rel=1e-9)
    loss.backward()
    for x in (inputs[0], inputs[3]):
        assert (x.grad[~mask] == 0).all()
    assert (inputs[4].grad[~mask] != 0).any()  # forced decisions still teach the value

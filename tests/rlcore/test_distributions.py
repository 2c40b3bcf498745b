"""The masked categorical against torch.distributions and plain Python; a masked action is never drawn."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.distributions import Categorical

import reference_rl as reference
from rlcore import distributions
from rlcore.backends.compilation import CompiledMultiDiscrete
from rlcore.distributions import MaskedMultiDiscrete, flatten, outer_sum, unflatten

NVECS = [(6, 5), (3, 5, 7), (4,), (2, 1, 2)]
# of one distribution, run eagerly
FORMS = pytest.mark.parametrize("form", [MaskedMultiDiscrete, CompiledMultiDiscrete])
LAST_U = 1 - 2**-24  # the largest float32 that torch.rand gives


def draw(batch: int, nvec: tuple, *, allow: float = 0.4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw heads' logits [B, Σn] and joint masks [B, *nvec] with at least one combination allowed."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, sum(nvec), generator=generator, dtype=torch.float64)
    scores = torch.rand(batch, math.prod(nvec), generator=generator)
    return logits, ((scores < allow) | (scores == scores.amin(-1, keepdim=True))).view(batch, *nvec)


def masked(batch: int, nvec: tuple, **options) -> MaskedMultiDiscrete:
    """Build the distribution of independent heads over drawn logits and masks."""
    logits, mask = draw(batch, nvec, **options)
    return MaskedMultiDiscrete(outer_sum(logits, nvec), mask, nvec)


def sub_masks(total: int) -> Tensor:
    """Make masks [total, total], row k with k + 1 of the combinations allowed, anywhere."""
    scores = torch.rand(total, total, generator=torch.Generator().manual_seed(0))
    return scores.argsort(-1).argsort(-1) <= torch.arange(total)[:, None]


@pytest.mark.parametrize("nvec", NVECS)
def test_flatten_and_unflatten_are_inverse_and_the_last_head_runs_fastest(nvec):
    distribution = masked(1, nvec)
    actions = torch.tensor(list(product(*map(range, nvec))))
    index = torch.arange(math.prod(nvec))
    assert torch.equal(flatten(actions, nvec), index)
    assert torch.equal(unflatten(index, distribution.nvec), actions)


@pytest.mark.parametrize("nvec", NVECS)
def test_unmasked_heads_are_independent_categoricals(nvec):
    logits, mask = draw(50, nvec, allow=2.0)
    assert mask.all()
    distribution = MaskedMultiDiscrete(outer_sum(logits, nvec), mask, nvec)
    heads = [Categorical(logits=head) for head in logits.split(nvec, -1)]
    for action in product(*map(range, nvec)):
        action = torch.tensor(action).expand(50, -1)
        expected = sum(head.log_prob(a) for head, a in zip(heads, action.T))
        torch.testing.assert_close(distribution.log_prob(action), expected)
    torch.testing.assert_close(distribution.entropy(), sum(head.entropy() for head in heads))
    assert torch.equal(distribution.mode(), torch.stack([head.logits.argmax(-1) for head in heads], -1))


@pytest.mark.parametrize("nvec", NVECS)
def test_masked_heads_equal_the_scalar_reference(nvec):
    logits, mask = draw(20, nvec)
    distribution = MaskedMultiDiscrete(outer_sum(logits, nvec), mask, nvec)
    for row in range(20):
        heads = [head.tolist() for head in logits[row].split(nvec)]
        expected = reference.distribution(heads, mask[row].tolist())
        assert distribution.probs[row].tolist() == pytest.approx(list(expected.values()), abs=1e-14)
        assert distribution.entropy()[row].item() == pytest.approx(reference.entropy(expected.values()), abs=1e-12)
        best = max(expected, key=expected.get)
        assert tuple(distribution.mode()[row].tolist()) == best
        log_prob = distribution.log_prob(torch.tensor([best]).expand(20, -1))[row]
        assert log_prob.item() == pytest.approx(math.log(expected[best]), abs=1e-12)


def test_a_mask_that_couples_the_heads_is_normalised_once():
    logits = torch.tensor([[1.0, 0.0, 2.0, 0.0]]).log_softmax(-1)
    diagonal = torch.eye(2, dtype=torch.bool)[None]
    distribution = MaskedMultiDiscrete(outer_sum(logits, (2, 2)), diagonal, (2, 2))
    p = 1 / (1 + math.exp(-3))  # both heads' odds count, once
    torch.testing.assert_close(distribution.probs, torch.tensor([[p, 0.0, 0.0, 1 - p]]))
    assert distribution.entropy().item() == pytest.approx(reference.entropy([p, 1 - p]), rel=1e-5)
    u = torch.rand(10000, generator=torch.Generator().manual_seed(0))
    many = MaskedMultiDiscrete(outer_sum(logits, (2, 2)).expand(10000, 4), diagonal.expand(10000, 2, 2), (2, 2))
    drawn = many.sample(u)
    assert (drawn[:, 0] == drawn[:, 1]).all()


@pytest.mark.parametrize("nvec", NVECS)
def test_perplexity_of_uniform_logits_counts_what_is_allowed(nvec):
    total = math.prod(nvec)
    mask = sub_masks(total)
    logits = torch.full((total, sum(nvec)), -5e3)  # no large negative number may stand in for −inf
    distribution = MaskedMultiDiscrete(outer_sum(logits, nvec), mask.view(total, *nvec), nvec)
    torch.testing.assert_close(distribution.entropy().exp(), torch.arange(1.0, total + 1))
    assert (distribution.probs[~mask] == 0).all()


@pytest.mark.long
@FORMS
@pytest.mark.parametrize("nvec", NVECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_samples_are_never_masked(nvec, dtype, form):
    total = math.prod(nvec)
    mask = sub_masks(total).repeat(1 + 40000 // total, 1)
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(len(mask), total, generator=generator)).to(dtype)
    distribution = form(logits, mask.view(-1, *nvec), nvec)
    ends = torch.zeros(len(mask)), torch.full((len(mask),), LAST_U)
    for u in (*ends, torch.rand(len(mask), generator=generator)):
        index = flatten(distribution.sample(u), nvec)
        assert mask.gather(-1, index[:, None]).all()
        assert torch.isfinite(distribution.log_prob(unflatten(index, distribution.nvec))).all()


@FORMS
def test_the_ends_of_the_uniform_give_the_first_and_the_last_allowed(form):
    nvec = (6, 5)
    mask = sub_masks(30)
    distribution = form(torch.zeros(30, 30), mask.view(30, *nvec), nvec)
    first, last = mask.int().argmax(-1), 29 - mask.flip(-1).int().argmax(-1)
    assert torch.equal(flatten(distribution.sample(torch.zeros(30)), nvec), first)
    assert torch.equal(flatten(distribution.sample(torch.full((30,), LAST_U)), nvec), last)


@FORMS
def test_samples_survive_a_parallel_scan(monkeypatch, form):
    def scan(x: Tensor, dim: int) -> Tensor:  # Kogge–Stone, as GPU kernels sum: adding zero may change the last bit
        for shift in (1, 2, 4, 8, 16):
            x = torch.cat((x[:, :shift], x[:, :-shift] + x[:, shift:]), dim)
        return x

    logits, mask = draw(2000, (6, 5))
    distribution = form(outer_sum(logits.float(), (6, 5)), mask, (6, 5))
    cdf = scan(distribution.probs, -1)
    monkeypatch.setattr(Tensor, "cumsum", scan)
    monkeypatch.setattr(Tensor, "__matmul__", lambda probs, _: scan(probs, -1))
    for edge in (cdf / cdf[:, -1:]).clamp_max(LAST_U).T:
        index = flatten(distribution.sample(edge), (6, 5))
        assert mask.flatten(1).gather(-1, index[:, None]).all()


@pytest.mark.long
@FORMS
@pytest.mark.parametrize("nvec", NVECS)
def test_samples_have_the_probabilities(nvec, form):
    n = 100000
    logits, mask = draw(1, nvec, allow=0.8)
    distribution = form(outer_sum(logits / 2, nvec).expand(n, -1), mask.expand(n, *nvec), nvec)
    u = torch.rand(n, generator=torch.Generator().manual_seed(1))
    counts = flatten(distribution.sample(u), nvec).bincount(minlength=math.prod(nvec))
    allowed = mask.flatten()
    assert counts[~allowed].sum() == 0
    p = distribution.probs[0, allowed]
    assert chisquare(counts[allowed].numpy(), n * p.numpy() / p.sum().item()).pvalue > 1e-3


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_gradients_are_finite_and_zero_for_masked_logits(scale):
    nvec = (3, 5, 7)
    _, mask = draw(40, nvec)
    logits = (scale * torch.randn(40, math.prod(nvec), generator=torch.Generator().manual_seed(0))).requires_grad_()
    distribution = MaskedMultiDiscrete(logits, mask, nvec)
    (distribution.log_prob(distribution.mode()) + distribution.entropy()).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[~mask.flatten(1)] == 0).all()
    assert scale > 1 or (logits.grad[mask.flatten(1)] != 0).any()


def test_gradients_equal_finite_differences():
    nvec = (3, 2)
    logits, mask = draw(6, nvec)
    action = MaskedMultiDiscrete(outer_sum(logits, nvec), mask, nvec).mode()

    def both(x):
        distribution = MaskedMultiDiscrete(outer_sum(x, nvec), mask, nvec)
        return distribution.log_prob(action), distribution.entropy()

    assert torch.autograd.gradcheck(both, logits.requires_grad_())


def test_one_combination_allowed_is_certain_and_teaches_nothing():
    nvec = (3, 2)
    mask = torch.eye(6, dtype=torch.bool)
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distribution = MaskedMultiDiscrete(logits, mask.view(6, *nvec), nvec)
    action = distribution.sample(torch.linspace(0, LAST_U, 6))
    assert torch.equal(flatten(action, nvec), torch.arange(6))
    assert (distribution.log_prob(action) == 0).all() and (distribution.entropy() == 0).all()
    (distribution.log_prob(action) + distribution.entropy()).sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype):
    nvec = (6, 5)
    logits, mask = draw(64, nvec)
    exact = MaskedMultiDiscrete(outer_sum(logits, nvec), mask, nvec)
    logits = logits.to(dtype).requires_grad_()
    distribution = MaskedMultiDiscrete(outer_sum(logits, nvec), mask, nvec)
    log_prob = distribution.log_prob(exact.mode())
    torch.testing.assert_close(log_prob.double(), exact.log_prob(exact.mode()), atol=0.05, rtol=0.05)
    torch.testing.assert_close(distribution.entropy().double(), exact.entropy(), atol=0.05, rtol=0.05)
    (log_prob + distribution.entropy()).sum().backward()
    assert torch.isfinite(logits.grad).all() and (distribution.probs[~mask.flatten(1)] == 0).all()


def test_a_batch_of_one_equals_its_row():
    nvec = (6, 5)
    logits, mask = draw(64, nvec)
    whole, u = MaskedMultiDiscrete(outer_sum(logits, nvec), mask, nvec), torch.linspace(0, LAST_U, 64)
    for i in (0, 17, 63):
        row = slice(i, i + 1)
        one = MaskedMultiDiscrete(outer_sum(logits[row], nvec), mask[row], nvec)
        assert torch.equal(one.sample(u[row]), whole.sample(u)[row]) and torch.equal(one.mode(), whole.mode()[row])
        torch.testing.assert_close(one.log_prob(one.mode()), whole.log_prob(whole.mode())[row])
        torch.testing.assert_close(one.entropy(), whole.entropy()[row])


# ── long rows ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("n", [distributions.LONG_ROW + 1, 50257])
def test_a_long_row_is_drawn_from_by_inversion(n):
    """As a whole row's sums say, in float64: what a token is drawn by is the place of u among them."""
    generator = torch.Generator().manual_seed(0)
    probs = (
        (4 * torch.randn(40, n, generator=generator, dtype=torch.float64))
        .masked_fill(torch.rand(40, n, generator=generator) < 0.3, -torch.inf)
        .softmax(-1)
    )
    u = torch.rand(40, generator=generator, dtype=torch.float64)
    u[:2] = torch.tensor([0.0, LAST_U])
    expected = torch.searchsorted(probs.cumsum(-1), u[:, None] * probs.sum(-1, keepdim=True), right=True)[:, 0]
    assert torch.equal(distributions.draw(probs, u), expected)
    found = distributions.draw(probs.float(), u.float())  # but for rounding of 50,000 sums
    assert (probs.gather(1, found[:, None]) > 0).all() and (found == expected).float().mean() > 0.9


def test_a_long_row_can_be_certain():
    for place in (0, 5000, 9999):
        probs = torch.zeros(2, 10000)
        probs[:, place] = 1.0
        assert distributions.draw(probs, torch.tensor([0.0, LAST_U])).tolist() == [place, place]

"""Advantages against the explicit sum and at their exact limits; properties of whitening."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reference_rl as reference
import rlcore.backends.triton_gae
from rlcore.returns import gae, whiten

T, N, GAMMA = 12, 5, 0.9
ENDS = {"random": (0.2, 0.2), "none": (0.0, 0.0), "all terminated": (1.0, 0.0), "all truncated": (0.0, 1.0)}


def rollout(ends: str, steps: int = T) -> list[Tensor]:
    """Draw reward, value, next value, terminated and done [T, N]; next values are not the next row's values."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, steps, N, generator=generator, dtype=torch.float64)
    terminated, truncated = (torch.rand(steps, N, generator=generator) < p for p in ENDS[ends])
    return [*numbers, terminated, terminated | truncated]


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("gamma, lam", [(0.97, 0.9), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9)])
def test_gae_equals_the_explicit_sum(ends, steps, gamma, lam):
    columns = rollout(ends, steps)
    expected = reference.gae(*(x.tolist() for x in columns), gamma, lam)
    torch.testing.assert_close(gae(*columns, gamma, lam), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    "view",
    [lambda x: x.T.contiguous().T, lambda x: x.repeat_interleave(2, 0)[::2], lambda x: torch.stack((x, x), -1)[..., 1]],
    ids=["transposed", "rows", "inner"],
)
def test_gae_of_views(view):
    columns = rollout("random")
    views = [view(x) for x in columns]
    assert not any(x.is_contiguous() for x in views)
    assert torch.equal(gae(*views, GAMMA, 0.95), gae(*columns, GAMMA, 0.95))


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_exact_values_of_a_constant_reward(lam):
    value = torch.full((T, N), 1 / (1 - GAMMA), dtype=torch.float64)
    reward, never = torch.ones_like(value), torch.zeros(T, N, dtype=torch.bool)
    truncated, terminated = never.clone(), never.clone()
    truncated[3], terminated[7] = True, True
    advantage = gae(reward, value, value, terminated, truncated | terminated, GAMMA, lam)
    torch.testing.assert_close(advantage[7], reward[7] - value[7])
    torch.testing.assert_close(advantage[[0, 1, 2, 3, 8, 9, 10, 11]], torch.zeros(8, N, dtype=torch.float64))
    before = torch.tensor([(GAMMA * lam) ** (7 - t) for t in range(4, 8)], dtype=torch.float64)
    torch.testing.assert_close(advantage[4:8], before[:, None] * advantage[7])


def test_the_trace_reaches_back_to_the_last_end_and_no_further():
    reward, value, next_value, terminated, done = (x[:, :1] for x in rollout("random"))
    assert (done & ~terminated).any() and terminated.any()
    jacobian = torch.autograd.functional.jacobian(
        lambda r: gae(r, value, next_value, terminated, done, GAMMA, 0.8), reward
    )[:, 0, :, 0]
    expected = [
        [(GAMMA * 0.8) ** (s - t) if s >= t and not done[t:s].any() else 0.0 for s in range(T)] for t in range(T)
    ]
    torch.testing.assert_close(jacobian, torch.tensor(expected, dtype=torch.float64))
    assert ((jacobian == 0) == (torch.tensor(expected) == 0)).all()


def test_what_follows_a_termination_is_not_looked_at():
    reward, value, next_value, terminated, done = rollout("random")
    rubbish = next_value.masked_fill(terminated, torch.nan)
    assert torch.equal(
        gae(reward, value, rubbish, terminated, done, GAMMA, 0.95),
        gae(reward, value, next_value, terminated, done, GAMMA, 0.95),
    )


def masks() -> dict:
    """Make masks [T, N], and None."""
    one = torch.zeros(T, N, dtype=torch.bool)
    one[3, 2] = True
    return {"null": None, "all": torch.ones_like(one), "random": rollout("random")[4], "one": one, "none": ~one & one}


@pytest.mark.parametrize("name", ["null", "all", "random"])
def test_whiten_on_the_mask(name):
    mask, x = masks()[name], 3 * rollout("none")[0] + 7
    inside = slice(None) if mask is None else mask
    white = whiten(x, mask)
    assert white[inside].mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white[inside].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert mask is None or (white[~mask] == 0).all()
    torch.testing.assert_close(whiten(5 * x - 2, mask), white)  # shift and scale do not matter


@pytest.mark.parametrize("name", ["one", "none"])
def test_whiten_is_finite_with_one_or_none(name):
    mask, x = masks()[name], rollout("none")[0] + 7
    assert (whiten(x, mask) == 0).all()


@pytest.mark.parametrize("outside", [1e6, -1e6])
def test_whiten_does_not_see_outside_the_mask(outside):
    mask, x = masks()["random"], rollout("none")[0]
    assert torch.equal(whiten(x.masked_fill(~mask, outside), mask), whiten(x, mask))


@pytest.mark.parametrize("ends", ENDS)
def test_one_kernel_says_the_same(kernels, ends):
    """To float32, also beyond a block of agents."""
    module, device = kernels(rlcore.backends.triton_gae)
    columns = [x.repeat(1, 31) for x in rollout(ends)]
    assert columns[0].shape[1] > module.BLOCK
    found = module.one_kernel(*(x.to(device) for x in columns), GAMMA, 0.8)
    torch.testing.assert_close(found.double().cpu(), gae(*columns, GAMMA, 0.8), rtol=1e-5, atol=1e-5)


def test_without_a_gpu_the_plain_function_answers():
    assert torch.equal(
        rlcore.backends.triton_gae.gae(*rollout("random"), GAMMA, 0.8), gae(*rollout("random"), GAMMA, 0.8)
    )

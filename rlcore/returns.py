"""From rewards to advantages, as pure functions. Shapes: T steps, N agents."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.losses import AllReduce, masked_mean


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Return generalised advantages [T, N] (Schulman et al. 2016, eq. 16).

    δ = r + γ·(1 − terminated)·next_value − value; the sum stops at `done` (terminated or truncated). `next_value` of
    a truncated step is the value of the episode's last observation, and not of the next episode's first.
    """
    bootstrap = torch.where(terminated, 0.0, next_value)
    delta = reward + gamma * bootstrap - value
    decay = gamma * lam * (~done).to(delta.dtype)
    return discounted_sum(delta, decay)


def discounted_sum(x: Tensor, decay: Tensor) -> Tensor:
    """Return y_t = x_t + decay_t · y_{t+1} [T, N], by doubling (Hillis and Steele 1986): log T passes instead of T."""
    sums = x  # sums[t] covers `reach` steps from t on, and decay[t] is the product of the decays of these steps
    reach = 1
    while reach < len(sums):
        near = sums[:-reach]
        far = sums[reach:]
        doubled = torch.addcmul(near, decay[: len(near)], far)
        complete = sums[-reach:]
        sums = torch.cat((doubled, complete))
        decay = decay[:-reach] * decay[reach:]
        reach = 2 * reach
    return sums


def expected_advantages(action_value: Tensor, prob: Tensor) -> tuple[Tensor, Tensor]:
    """Return A(s, a) = Q(s, a) − V̄(s) of all P actions, [..., P], and V̄(s) = Σ_a π(a | s) Q(s, a), [...].

    Expected policy gradients: Ciosek and Whiteson 2018; mean actor-critic: Allen et al. 2017.
    """
    mean = (prob * action_value).sum(-1)
    return action_value - mean[..., None], mean


def lambda_targets(mean: Tensor, value: Tensor, decay: float) -> Tensor:
    """Return the critic's targets of an episode, [T, N].

    G_t = V̄_t + decay·(G_{t+1} − V(s_{t+1})), with G_{T+1} = V(s_{T+1}) = 0 after the last step.

    `mean` [T, N] is V̄, the expected backup. `value` [T, N] is V, the critic's value of the visited states; it is 0 for
    an agent that has left for good (envs/base.py, LookaheadEnv). `decay` is γλ. At λ = 0 targets are expected backups.
    At λ = 1 they have the whole sampled future, with its noise and without the critic's bias.
    """
    surprise = torch.zeros_like(mean[0])
    targets = []
    for mean_now, value_now in zip(mean.flip(0), value.flip(0)):
        target = mean_now + decay * surprise
        surprise = target - value_now
        targets.append(target)
    return torch.stack(targets[::-1])


def whiten(x: Tensor, mask: Tensor | None = None, all_reduce: AllReduce | None = None) -> Tensor:
    """Shift to mean 0 and scale to standard deviation 1 over the mask; zero elsewhere.

    With `all_reduce`, mean and standard deviation are over the samples of all processes.
    """
    mean = masked_mean(x, mask, all_reduce)
    centred = x - mean
    variance = masked_mean(centred.square(), mask, all_reduce)
    whitened = centred * torch.rsqrt(variance + 1e-8)
    return whitened if mask is None else torch.where(mask > 0, whitened, 0.0)

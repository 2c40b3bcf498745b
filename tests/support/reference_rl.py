"""The mathematics of PPO in plain Python, one float at a time, from the papers' formulas and not from the package."""

from __future__ import annotations

from itertools import product
from math import exp, log


def mean(xs) -> float:
    """Arithmetic mean."""
    xs = list(xs)
    return sum(xs) / len(xs)


def gae(reward, value, next_value, terminated, done, gamma: float, lam: float) -> list:
    """Advantages [T][N] as the explicit sum Σ (γλ)^l δ_{t+l} up to the first end (Schulman et al. 2016, eq. 16)."""

    def advantage(t, n):
        total = 0.0
        for s in range(t, len(reward)):
            follows = 0.0 if terminated[s][n] else next_value[s][n]
            total += (gamma * lam) ** (s - t) * (reward[s][n] + gamma * follows - value[s][n])
            if done[s][n]:
                break
        return total

    return [[advantage(t, n) for n in range(len(reward[0]))] for t in range(len(reward))]


def discounted(reward, done, gamma: float, carried: list) -> tuple[list, list]:
    """Running discounted returns of rewards [T][N], zeroed after an end; also what the next rollout starts with."""
    rows = []
    for r, end in zip(reward, done):
        rows.append([gamma * g + x for g, x in zip(carried, r)])
        carried = [0.0 if e else g for g, e in zip(rows[-1], end)]
    return rows, carried


def policy_loss(log_ratio, advantage, clip: float) -> float:
    """Minus the clipped objective, mean of min(r·A, clip(r)·A) (Schulman et al. 2017, eq. 7)."""
    return -mean(min(exp(x) * a, min(max(exp(x), 1 - clip), 1 + clip) * a) for x, a in zip(log_ratio, advantage))


def value_loss(value, old, target, clip: float | None) -> float:
    """Half the mean of the larger squared error, of the value and of the value kept within `clip` of its old one."""

    def error(v, o, y):
        near = v if clip is None else o + min(max(v - o, -clip), clip)
        return max((v - y) ** 2, (near - y) ** 2)

    return mean(error(*row) for row in zip(value, old, target)) / 2


def distribution(heads: list, mask) -> dict:
    """Probabilities {combination: p} of heads' logits under a nested mask: softmax of sums over what is allowed."""

    def allowed(pair):
        cell = mask
        for i in pair:
            cell = cell[i]
        return cell

    weights = {
        pair: exp(sum(head[i] for head, i in zip(heads, pair))) if allowed(pair) else 0.0
        for pair in product(*(range(len(head)) for head in heads))
    }
    total = sum(weights.values())
    return {pair: w / total for pair, w in weights.items()}


def entropy(probs) -> float:
    """−Σ p·log p, in nats."""
    return -sum(p * log(p) for p in probs if p > 0)

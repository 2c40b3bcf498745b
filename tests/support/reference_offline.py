"""BCQ and CQL in plain Python, one float at a time, from the papers' formulas; exact values of the tests' chain."""

from __future__ import annotations

from math import exp, log


def log_softmax(logits, mask) -> list:
    """Log-probabilities over what is allowed, None elsewhere."""
    total = log(sum(exp(x) for x, m in zip(logits, mask) if m))
    return [x - total if m else None for x, m in zip(logits, mask)]


def target(reward, terminated, online, frozen, logits, mask, *, gamma: float, threshold: float) -> float:
    """r + γ·Q'(s', argmax Q(s', a)) over a with p(a)/max p > τ (Fujimoto et al. 2019b, eq. 18), and the likeliest."""
    if terminated:
        return reward
    p = [None if x is None else exp(x) for x in log_softmax(logits, mask)]
    top = max(x for x in p if x is not None)
    fit = [a for a, x in enumerate(p) if x is not None and (x / top > threshold or x == top)]
    return reward + gamma * frozen[max(fit, key=lambda a: online[a])]


def error(value: float, goal: float, delta: float | None) -> float:
    """Huber's loss, or half the square."""
    gap = abs(value - goal)
    return gap**2 / 2 if delta is None or gap <= delta else delta * (gap - delta / 2)


def td(q, action, goal, delta) -> float:
    """Mean error of the values of actions taken."""
    return sum(error(row[a], y, delta) for row, a, y in zip(q, action, goal)) / len(q)


def bcq_loss(q, logits, mask, action, goal, *, penalty: float, delta: float | None) -> float:
    """Error of values, negative log-likelihood of actions, penalty on the mean square of valid logits."""
    likelihood = -sum(log_softmax(row, m)[a] for row, m, a in zip(logits, mask, action)) / len(q)
    valid = [x for row, m in zip(logits, mask) for x, allowed in zip(row, m) if allowed]
    return td(q, action, goal, delta) + likelihood + penalty * sum(x * x for x in valid) / len(valid)


def cql_loss(q, logits, mask, action, goal, *, alpha: float, delta: float | None) -> float:
    """Error of values and α·E[log Σ exp Q − Q(a)] over valid pairs (Kumar et al. 2020, eq. 4)."""
    gaps = [log(sum(exp(x) for x, m in zip(row, valid) if m)) - row[a] for row, valid, a in zip(q, mask, action)]
    return td(q, action, goal, delta) + alpha * sum(gaps) / len(gaps)


def chain_values() -> dict:
    """Q* {(time, place, flat action): value} of tests/support/toy_envs.py's chain, by recursion."""

    def after(place, go, hand):
        return max(0, place + (go == 1 and hand == place % 2) - (go == 2))

    def allowed(place):
        return [(go, hand) for go in range(3) for hand in range(2) if (go, hand) != (0, 1) and (go != 2 or place > 0)]

    def value(time, place, go, hand):
        following = after(place, go, hand)
        reward = 0.2 * (go == 0)
        if time == 4:
            return reward + following
        return reward + max(value(time + 1, following, *pair) for pair in allowed(following))

    return {
        (t, p, 2 * go + hand): value(t, p, go, hand) for t in range(5) for p in range(t + 1) for go, hand in allowed(p)
    }

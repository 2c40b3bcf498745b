"""Value tables, and next week's values after a week: on the whole grid of states, or in the visited states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import (
    CHURNED,
    EXPECTATIONS,
    FATIGUES,
    HABITS,
    SUBSCRIBED,
    Customers,
    CustomerState,
    Rows,
)
from envs.offers.world.transition import habit_gain


class StateValues(NamedTuple):
    """A value for every state: subscribed [6, 4, 3, N], unsubscribed [6, N]; a churned customer is worth nothing."""

    subscribed: Tensor
    unsubscribed: Tensor

    def at(self, state: CustomerState) -> Tensor:
        """Value of the state that each customer is in, [N]."""
        rows = torch.arange(len(state.habit), device=state.habit.device)
        inside = self.subscribed[state.habit, state.fatigue, state.expectation, rows]
        value = torch.where(state.status == SUBSCRIBED, inside, self.unsubscribed[state.habit, rows])
        return torch.where(state.status == CHURNED, 0.0, value)

    def take(self, rows: Rows) -> StateValues:
        """Take some of the customers."""
        return StateValues(self.subscribed[..., rows], self.unsubscribed[..., rows])


class SuccessorValues(NamedTuple):
    """Expected value of next week by what the customer does in this week, before churn and opt-out.

    Shapes are those of the states. Habit and expectation of a state are this week's, fatigue is next week's.
    """

    none: Tensor
    buy: Tensor
    redeem: Tensor


class Neighbours(NamedTuple):
    """Next week's values around a state, by what habit does: stay, fall (down) or rise (up).

    Expectation may have decayed; in …_raised it has risen after a redemption.
    """

    stay: Tensor
    down: Tensor
    up: Tensor
    stay_raised: Tensor
    up_raised: Tensor


class StateGrid:
    """Every subscribed state of every customer; shapes broadcast to [6, 4, 3, N]."""

    def __init__(self, like: Tensor):
        h, f, d = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (HABITS, FATIGUES, EXPECTATIONS))
        self.h, self.f, self.d = h.view(-1, 1, 1, 1), f.view(-1, 1, 1), d.view(-1, 1)

    def near(self, c: Customers, v: Tensor) -> Neighbours:
        """Look around in a table [6, 4, 3, N]."""
        decayed, raised = torch.lerp(v, shift(v, 2, -1), c.delta_d.expand_as(v)), shift(v, 2, +1)
        return Neighbours(decayed, shift(decayed, 0, -1), shift(decayed, 0, +1), raised, shift(raised, 0, +1))

    def near_outside(self, v: Tensor) -> Neighbours:
        """Look around in a table [6, N]."""
        up = shift(v, 0, +1)
        return Neighbours(v, shift(v, 0, -1), up, v, up)

    def inside(self, c: Customers, v: Tensor) -> Callable[[int | Tensor], SuccessorValues]:
        """Mix a table [6, 4, 3, N] for any fatigue, moved by so many steps, a number or int64 []."""
        mixed = mix(c, self.h, self.near(c, v))

        def moved(step: int | Tensor) -> SuccessorValues:
            index = (torch.arange(FATIGUES, device=v.device) + step).clamp(0, FATIGUES - 1)
            return SuccessorValues(*(x[:, index] for x in mixed))

        return moved

    def outside(self, c: Customers, v: Tensor) -> SuccessorValues:
        """Mix a table [6, N]."""
        return SuccessorValues(*(x[:, None, None] for x in mix(c, self.h[:, 0, 0], self.near_outside(v))))


class VisitedStates:
    """The current states of N customers, as if all were subscribed; shapes are [N]."""

    def __init__(self, state: CustomerState, like: Tensor):
        self.state, self.rows = state, torch.arange(len(state.habit), device=like.device)
        self.h, self.f, self.d = (x.to(like.dtype) for x in state[:3])

    def near(self, c: Customers, v: Tensor, step: int | Tensor) -> Neighbours:
        """Return the neighbours of the states in a table [6, 4, 3, N], with the fatigue moved by `step`."""
        fatigue, d = (self.state.fatigue + step).clamp(0, FATIGUES - 1), self.state.expectation
        habit = torch.stack([self._habit(move) for move in (0, -1, +1)])  # [3, N], as the tables below
        same, lower, higher = (self._look(v, habit, fatigue, x.clamp(0, EXPECTATIONS - 1)) for x in (d, d - 1, d + 1))
        stay, down, up = torch.lerp(same, lower, c.delta_d)
        return Neighbours(stay, down, up, higher[0], higher[2])

    def _look(self, v: Tensor, habit: Tensor, fatigue: Tensor, expectation: Tensor) -> Tensor:
        """Return the values of states [M, N] in a table [6, 4, 3, N]: one gather, faster than four indices."""
        return v.flatten(0, 2).gather(0, (habit * FATIGUES + fatigue) * EXPECTATIONS + expectation)

    def _habit(self, move: int) -> Tensor:
        return (self.state.habit + move).clamp(0, HABITS - 1)

    def inside(self, c: Customers, v: Tensor) -> Callable[[int | Tensor], SuccessorValues]:
        """Mix a table [6, 4, 3, N] for any fatigue, moved by so many steps."""
        return lambda step: mix(c, self.h, self.near(c, v, step))

    def outside(self, c: Customers, v: Tensor) -> SuccessorValues:
        """Mix a table [6, N]."""
        stay, down, up = (v[self._habit(move), self.rows] for move in (0, -1, +1))
        return mix(c, self.h, Neighbours(stay, down, up, stay, up))


class Contacts(NamedTuple):
    """Offers and channels of contacts: parameters of offers are [O, *S], those of channels [C, *S]."""

    omega: Tensor
    value: Tensor
    cost: Tensor
    opt_out: Tensor
    steps: tuple[int, ...] | Tensor  # of fatigue, by channel [C], or by customer [N]

    @classmethod
    def all(cls, c: Customers, catalogue: Catalogue, at: StateGrid | VisitedStates) -> Contacts:
        """Every offer through every channel."""
        each = (-1, *(1,) * at.h.dim())  # broadcast over the states
        return cls(
            omega=c.omega.view(len(catalogue.cost), *each[2:], -1),
            value=catalogue.value[1:].view(each),
            cost=catalogue.cost.view(each),
            opt_out=catalogue.opt_out.view(each),
            steps=catalogue.fatigue_step_counts,
        )

    @classmethod
    def each(cls, c: Customers, catalogue: Catalogue, offer: Tensor, channel: Tensor) -> Contacts:
        """One offer [N] through one channel [N] for each customer, in the current states: O = C = 1."""
        return cls(
            omega=c.omega.gather(0, channel[None]),
            value=catalogue.value[offer][None],
            cost=catalogue.cost[channel][None],
            opt_out=catalogue.opt_out[channel][None],
            steps=catalogue.fatigue_steps[channel],
        )

    def by_fatigue_steps(self, moved: Callable[[int | Tensor], SuccessorValues]) -> SuccessorValues:
        """Successor values `moved(steps)` for the fatigue steps of every channel, [C, *S]."""
        if isinstance(self.steps, Tensor):
            return SuccessorValues(*(x[None] for x in moved(self.steps)))
        by_step = {k: moved(k) for k in set(self.steps)}
        return SuccessorValues(*(torch.stack(x) for x in zip(*(by_step[k] for k in self.steps))))


def shift(table: Tensor, dim: int, step: int) -> Tensor:
    """Read the neighbour at `step` (±1) along `dim`; the end of the table is its own neighbour."""
    n = table.shape[dim]
    if step > 0:
        return torch.cat((table.narrow(dim, 1, n - 1), table.narrow(dim, n - 1, 1)), dim)
    return torch.cat((table.narrow(dim, 0, 1), table.narrow(dim, 0, n - 1)), dim)


def mix(c: Customers, h: Tensor, near: Neighbours) -> SuccessorValues:
    """Mix next week's values over the moves of habit h."""
    stay, raised = near.stay, near.stay_raised
    up, up_redeemed = (habit_gain(c, h, redeemed).expand_as(stay) for redeemed in (False, True))
    return SuccessorValues(
        torch.lerp(stay, near.down, c.pi_minus.expand_as(stay)),
        torch.lerp(stay, near.up, up),
        torch.lerp(raised, near.up_raised, up_redeemed),
    )

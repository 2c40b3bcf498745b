"""The budget of a season: amounts of each week, stock, roll-over, and the rule that keeps spending within them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from envs.offers.planning.lagrangian_bound import single_process, unconstrained_spend
from envs.offers.planning.state_values import StateValues
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import Customers, CustomerState, World


class Budget:
    """The budget of a season, and the budget rule that keeps spending within it.

    Every week has the same money: `weekly` a customer, or where `weekly` is None, a `share` of the weekly spend of the
    best unconstrained plan. With `rollover` a week can spend what earlier weeks left. `seasonal` makes all money
    available from the first week on. `stock` {offer: redemptions a customer and season} limits offers.
    """

    def __init__(self, *, share: float, weekly: float | None, seasonal: bool, rollover: bool, stock: dict | None, rule):
        if weekly is None and not 0 < share <= 1:
            raise ValueError(f"env.budget.share: expected a share in (0, 1], got {share}")
        if weekly is not None and weekly <= 0:
            raise ValueError(f"env.budget.weekly: expected money, above 0, got {weekly}")
        for offer, pieces in (stock or {}).items():
            if isinstance(pieces, bool) or not isinstance(pieces, (int, float)) or not 0 <= pieces < math.inf:
                raise ValueError(f"env.budget.stock.{offer}: expected redemptions a customer, from 0, got {pieces}")
        self.share, self.weekly, self.seasonal, self.rollover = share, weekly, seasonal, rollover or seasonal
        self.stock, self.rule = stock or {}, rule

    def check(self, catalogue: Catalogue) -> None:
        """Raise ValueError where stock or rule don't fit the catalogue."""
        self.pieces(0, catalogue)
        self.rule.check(catalogue)

    def with_share(self, share: float) -> Budget:
        """Return the same with another share."""
        return self._with(share, None)

    def with_weekly(self, weekly: float) -> Budget:
        """Return the same with so much money a customer and week."""
        return self._with(self.share, weekly)

    def _with(self, share: float, weekly: float | None) -> Budget:
        """Return the same with other money."""
        return Budget(
            share=share, weekly=weekly, seasonal=self.seasonal, rollover=self.rollover, stock=self.stock, rule=self.rule
        )

    def weekly_amounts(
        self,
        c: Customers,
        world: World,
        v0: list[StateValues] | None,
        start: CustomerState,
        contacts: Tensor | None = None,
        *,
        total: Callable[[Tensor], Tensor] = single_process,
    ) -> Tensor:
        """Budget [T] of a population; `total` sums over the processes that share it.

        The plan whose spend `share` refers to makes only contacts that contact rules allow.
        """
        if self.weekly is not None:
            amounts = self.weekly * total(torch.full_like(world.season, len(c)))
        else:
            spend = unconstrained_spend(c, world, v0, start, contacts=contacts, total=total)
            amounts = self.share * spend.mean().expand(world.weeks)
        if not self.seasonal:
            return amounts
        return torch.cat((amounts.sum()[None], torch.zeros_like(amounts[1:])))

    def pieces(self, n: int, catalogue: Catalogue) -> Tensor:
        """Redemptions of each offer that are available to n customers [O+1], inf without a limit."""
        unknown = set(self.stock) - set(catalogue.offers[1:])
        if unknown:
            raise ValueError(f"env.budget.stock: no such offer: {', '.join(sorted(unknown))}")
        each = [self.stock.get(offer, math.inf) for offer in catalogue.offers]
        return torch.tensor([x if x == math.inf else x * n for x in each]).to(catalogue.value)

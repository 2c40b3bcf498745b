"""The inputs of the steps of many worlds, drawn in advance: whose turn it is, uniforms, and the time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.sequential.customers import StructuralCustomers, ToyCustomers


class StepInputs(NamedTuple):
    """Everything in a step that does not depend on actions, [W, ...] each; for K steps drawn at once, [K, W, ...]."""

    visit: tuple[Tensor, ...]  # rows of the current customers; of K steps, those of new customers
    u: Tensor  # uniforms for the outcomes, [U, W]
    age: Tensor  # steps since the season began
    week: Tensor
    clock: Tensor  # observed time: share of the season's weeks, and of the week's customers, [W, 2]
    week_ends: Tensor  # the step ends a week, bool
    ends: Tensor  # the step ends a season, bool

    def at(self, k: int | slice) -> StepInputs:
        """Take some of the steps."""
        return StepInputs(tuple(x[k] for x in self.visit), *(x[k] for x in self[1:]))


class InputStream:
    """The inputs of the steps of `worlds`, drawn for `prefetch_steps` steps at a time.

    Each of the random generators serves an equal share of the worlds.
    """

    def __init__(
        self,
        world: ToyCustomers | StructuralCustomers,
        generators: list[torch.Generator],
        device: torch.device,
        *,
        worlds: int,
        customers: int,
        prefetch_steps: int,
    ):
        self.world, self.generators, self.device = world, generators, device
        self.customers, self.prefetch_steps = customers, prefetch_steps
        self.season_steps = customers * world.weeks
        self.share = worlds // len(generators)

    def draw_ages(self, high: int) -> Tensor:
        """Draw the steps that each world's season has lasted, below `high`, int64 [W]."""
        shares = [torch.randint(high, (self.share,), generator=g, device=self.device) for g in self.generators]
        return torch.cat(shares)

    def prefetch(self, age: Tensor) -> None:
        """Draw the inputs of the next steps; `age` [W] is that of the first."""
        steps, share, device = self.prefetch_steps, self.share, self.device
        self.streams = [g.get_state() for g in self.generators]  # to draw the same inputs again
        drawn = [self.world.draw(steps * share, g) for g in self.generators]
        newcomers = tuple(torch.cat([x.view(steps, share, *x.shape[1:]) for x in parts], 1) for parts in zip(*drawn))
        u = torch.cat(
            [torch.rand(steps, self.world.uniforms, share, generator=g, device=device) for g in self.generators], -1
        )
        ages = (age + torch.arange(steps + 1, device=device)[:, None]) % self.season_steps
        week, place = ages // self.customers, ages % self.customers
        clock = torch.stack((week / self.world.weeks, place / self.customers), -1)
        self.prefetched = StepInputs(
            visit=newcomers,
            u=u,
            age=ages[:-1],
            week=week[:-1],
            clock=clock[:-1],
            week_ends=place[1:] == 0,
            ends=ages[1:] == 0,
        )
        self.position = 0  # of the current step among the prefetched steps
        self.next_age = ages[-1]

    def current(self) -> StepInputs:
        """Return the inputs of the current step."""
        return self.prefetched.at(self.position)

    def advance(self, steps: int) -> None:
        """Move on by a number of prefetched steps."""
        self.position += steps
        if self.position == self.prefetch_steps:
            self.prefetch(self.next_age)

    def take(self, steps: int) -> StepInputs:
        """Move on by a number of steps and return their inputs, [steps, W, ...]."""
        parts = []
        while steps:
            part = min(steps, self.prefetch_steps - self.position)
            parts.append(self.prefetched.at(slice(self.position, self.position + part)))
            self.advance(part)
            steps -= part
        if len(parts) == 1:
            return parts[0]
        visit = tuple(map(torch.cat, zip(*(part.visit for part in parts))))
        return StepInputs(visit, *map(torch.cat, zip(*(part[1:] for part in parts))))

    def state_dict(self) -> dict[str, Any]:
        """Return the worlds' positions, and the streams as they were before the last prefetch."""
        return {"age": self.prefetched.age[0], "position": self.position, "streams": self.streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict` from a state that may hold more."""
        for generator, stream in zip(self.generators, state["streams"], strict=True):
            generator.set_state(stream.cpu())
        self.prefetch(state["age"].to(self.device))
        self.position = state["position"]

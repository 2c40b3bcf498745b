"""What an ensemble asks of a kind of twin: how its members are made, fitted, and what they say of a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from envs.offers.logs.panel import Panel
from envs.offers.twin.predictions import PanelPredictions
from envs.offers.world.customers import World
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs.report import Report


class TwinModel(Protocol):
    """A kind of model for the members of an ensemble: how members are made, fitted and evaluated."""

    unobserved_note: str  #: treatment of an outcome that never happens in the log, for a warning

    def make_members(self, env, seed: int, members: int) -> list[nn.Module]:
        """Make unfitted members."""

    def start_member(self, member: nn.Module, weights: dict) -> None:
        """Give a member the weights of a fitted one to start from."""

    def to_panel(self, log: LoggedDataset, env) -> Panel:
        """Lay a log out by customer and week. Raises ValueError where members can't learn from the log."""

    def fix_unobserved(self, outcomes: tuple[str, ...], members: Iterable[nn.Module]) -> tuple[str, ...]:
        """Leave to the priors what a log without these outcomes cannot identify; return the outcomes to warn of."""

    def fit(
        self,
        member: nn.Module,
        world: World,
        panel: Panel,
        weight: Tensor,
        held_out: Panel,
        held_out_weight: Tensor,
        generator: torch.Generator,
    ) -> dict:
        """Fit a member to a panel under weights [T, N]; return metrics."""

    def predict(self, member: nn.Module, world: World, panel: Panel) -> PanelPredictions:
        """Return a member's predictions of a panel."""

    def misfits(self, members: list[PanelPredictions], panel: Panel, held_out: Tensor, env, level: float) -> list[str]:
        """Warn of decisions whose outcomes the members can't explain, at a level over all that is tested.

        `held_out`, bool [N], are customers of the panel that no member is fitted to.
        """

    def parameters(
        self, members: list, world: World, panel: Panel, weight: Tensor, channels: list[str]
    ) -> Report | None:
        """Say what a panel under weights [T, N] tells of each parameter; None where that is not known."""

    def shuffled_columns(self, panel: Panel, order: Tensor, env) -> Iterator[tuple[str, Panel]]:
        """Yield each input column by name, with a panel in which the column is that of customers `order` [N]."""

    def state_dict(self) -> dict:
        """Return what members need beside their weights."""

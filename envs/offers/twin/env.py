"""The environment of a twin's customers or, without a twin, of the same customers' true responses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from envs.offers.env import OffersEnv
from envs.offers.twin.structural_model import TwinPopulation


class TwinEnv(OffersEnv):
    """OffersEnv, whose customers respond by the twin at the path `twin`; with null, by their own parameters."""

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        twin: str | None,
        population: Callable,
        **parts,
    ):
        if twin == "":
            raise ValueError(
                "env.twin: expected the path of a checkpoint of algo=twin, as in env.twin=twin.pt, or null"
            )
        if twin is not None:
            population = partial(TwinPopulation, base=population, path=twin)
        super().__init__(device, seed, population=population, **parts)

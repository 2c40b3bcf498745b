"""The members of a neural twin's checkpoint, for simulation."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from envs.configuration import CONF, instantiate_stored, require_parts
from envs.offers.neural_twin.customers import NeuralCustomers
from envs.offers.neural_twin.fit import KIND
from envs.offers.twin.twin_checkpoint import load_twin
from envs.offers.world.customers import World
from envs.range_checks import check_stored_ranges


class NeuralEnsemble:
    """The fitted members of a checkpoint of algo=twin algo/twin=neural, for an environment.

    Raises ValueError where the checkpoint is of another kind, or was fitted to other customers or another catalogue.
    """

    def __init__(self, path: str, env):
        advice = f"whose customers have parameters: expected env=offers env/population=twin env.population.path={path}"
        state = load_twin(path, "env.twin", KIND, advice)
        agent = state["agent"]
        self.only: int | None = None  # the member of all customers; None: every member has equally many customers
        require_parts(state["config"], ["algo.twin"], f"env.twin={path}")
        check_stored_ranges(state["config"], CONF, f"env.twin={path}")
        twin = instantiate_stored(state["config"]["algo"]["twin"], f"env.twin={path}")
        self.half_lives = twin.half_lives
        try:
            if agent["env"]["population"]:
                env.load_fitted(agent["env"])  # the networks' features, whatever table is here
            self.networks = twin.make_members(env, 0, agent["iteration"])
            for network, weights in zip(self.networks, agent["members"]):
                network.load_state_dict(weights)
                network.to(env.device)
        except RuntimeError as error:
            raise ValueError(
                f"env.twin={path}: fitted to customers or a catalogue of another kind: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error

    def members(self) -> list[NeuralEnsemble]:
        """Return, for each member, the ensemble in which all customers respond as that member."""
        alone = [copy(self) for _ in self.networks]
        for k, ensemble in enumerate(alone):
            ensemble.only = k
        return alone

    def customers(self, features: Tensor, world: World) -> NeuralCustomers:
        """Return the customers of features [N, F]."""
        n = len(features)
        member_of = torch.arange(n, device=features.device) * len(self.networks) // n
        if self.only is not None:
            member_of = torch.full_like(member_of, self.only)
        return NeuralCustomers(self.networks, member_of, features, world, self.half_lives)

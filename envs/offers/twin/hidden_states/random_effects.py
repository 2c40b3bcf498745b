"""Random effects: what features leave open of some parameters, normal beside G(x) and integrated at nodes.

The effects of different parameters are independent. A parameter of several columns, as ω with one a channel, has one
effect that all of its columns share: of what differs between channels the effect is the common part. The rule is the
product of Gauss–Hermite rules (Butler & Moffitt 1982, for one effect). It is not adaptive: where a long life fixes a
customer's effect far more closely than the effect's sd, more nodes are needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def hermite_nodes(nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes [Q] of a standard normal and their weights [Q], whose sum is 1; float64."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(at), torch.from_numpy(weight / weight.sum())


class RandomEffects(NamedTuple):
    """Q nodes of the random effects of E parameters, for θ's matrix of K columns."""

    at: Tensor  # of each column, in sds of its effect, [Q, K]; 0 in columns without an effect
    log_weight: Tensor  # [Q]: logarithms of the nodes' weights, whose sum is 1
    of_columns: Tensor  # bool [E, K]: the columns of each effect

    @classmethod
    def of_parameters(cls, nodes: dict[str, int], columns: dict[str, list[int]], like: Tensor) -> RandomEffects:
        """Return the product rule of so many `nodes` a parameter; `columns` are those of each parameter in θ's matrix.

        The nodes have the type and the device of `like`.
        """
        width = sum(map(len, columns.values()))
        at, weight = torch.zeros(1, width, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        of_columns = torch.zeros(len(nodes), width, dtype=torch.bool)
        for effect, (name, number) in enumerate(nodes.items()):
            of_columns[effect, columns[name]] = True
            own_at, own_weight = hermite_nodes(number)
            at = (at[:, None] + own_at[:, None] * of_columns[effect]).flatten(0, 1)
            weight = (weight[:, None] * own_weight).flatten()
        return cls(at.to(like), weight.log().to(like), of_columns.to(like.device))

    def spread_over(self, theta: Tensor, effect_sd: Tensor, bounds: Tensor) -> Tensor:
        """Return θ [N, K] at all nodes, [Q·N, K]: nodes are N rows apart, kept within `bounds` [2, K].

        `effect_sd` [K] or [N, K] are the effects' standard deviations, in θ's units.
        """
        low, high = bounds.to(theta)
        at_nodes = theta + self.at.to(theta)[:, None] * effect_sd.to(theta)
        return at_nodes.clamp(low, high).flatten(0, 1)

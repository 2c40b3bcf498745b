"""Rules of money: how much of a week's money a plan counts as used; training has budget rules of the same names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LOTS_Z = 4.0  # standard deviations of lots that hard limits leave free, so that lots are hardly ever cut


class Totals(NamedTuple):
    """Sums over the customers of an arm, money, of any one shape.

    The two last fields are the variances that the lots of private prices bring; both are bounds from above.
    """

    spend: np.ndarray  #: expected
    variance: np.ndarray  #: of the spend of what was sent, as customers redeem independently of each other
    charge: np.ndarray  #: face values and messages' costs
    worth: np.ndarray  #: price of each step times its spend: what the plan's policy holds the purchases to be worth
    spend_lots: np.ndarray  #: of the expected spend
    charge_lots: np.ndarray  #: of the charge


@dataclass(frozen=True)
class MoneyRule:
    """One of `expected`, `buffered` and `reserved`.

    `expected` keeps the expected spend within the money; realised spend passes it in about half of all weeks.
    `buffered` keeps the expected spend plus `z` standard deviations within it: those of who redeems and of the lots
    together. `reserved` holds the face value and message of every send, so that spend cannot pass the money, whoever
    redeems.
    """

    name: str
    z: float

    def __post_init__(self):
        if self.name not in ("expected", "buffered", "reserved"):
            raise ValueError(f"rule: expected expected, buffered or reserved, got '{self.name}'")

    @property
    def holds_face_value(self) -> bool:
        """Whether the face value of every send lies within the money."""
        return self.name == "reserved"

    def used(self, totals: Totals) -> np.ndarray:
        """Return what counts as used."""
        if self.name == "expected":
            return totals.spend
        if self.name == "buffered":
            return totals.spend + self.z * np.sqrt(np.maximum(totals.variance + totals.spend_lots, 0.0))
        return totals.charge + LOTS_Z * np.sqrt(np.maximum(totals.charge_lots, 0.0))

    def meaning(self) -> str:
        """Say in a sentence what the rule promises."""
        return {
            "expected": "expected spend meets the money; in about half of all weeks the spend passes it",
            "buffered": f"expected spend is {self.z:g} standard deviations below the money",
            "reserved": "face value and message of every send are covered: the spend cannot pass the money",
        }[self.name]

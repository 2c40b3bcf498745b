"""Contact caps: at most so many contacts in any so many consecutive weeks, and what policies observe of them.

A policy observes the share of each cap that is left now, and the share that will be left in later weeks if nobody is
contacted until then. Without the latter a policy can't know when a past contact stops counting, and what it observes is
not Markov.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class ContactCap(NamedTuple):
    """At most `contacts` contacts in any `weeks` consecutive weeks."""

    weeks: int
    contacts: int

    @property
    def reason(self) -> str:
        """Say why a customer may not be contacted."""
        return f"cap: {self.contacts} contacts in {self.weeks} week{'s' * (self.weeks > 1)}"

    @property
    def weeks_ahead(self) -> range:
        """How many weeks ahead past contacts may still count: 1 to `weeks` − 2; one week more, and the cap is free."""
        return range(1, self.weeks - 1)

    def left(self, contacted: Tensor, ahead: int = 0) -> Tensor:
        """Return the share that is left in `ahead` weeks, [N], given the past weeks' contacts, bool [weeks, N]."""
        first = max(len(contacted) - self.weeks + 1 + ahead, 0)
        return (self.contacts - contacted[first:].long().sum(0)) / self.contacts


def observed(caps: Iterable[ContactCap]) -> list[tuple[int, ContactCap, int]]:
    """List what is observed of caps, as (number, cap, weeks ahead): all caps now, then each cap in later weeks."""
    numbered = list(enumerate(caps))
    return [(k, cap, 0) for k, cap in numbered] + [(k, cap, ahead) for k, cap in numbered for ahead in cap.weeks_ahead]


def caps_left(caps: Iterable[ContactCap], contacted: Tensor) -> list[Tensor]:
    """Return the shares [N] of `cap_columns`, given the past weeks' contacts, bool [weeks, N]."""
    return [cap.left(contacted, ahead) for _, cap, ahead in observed(caps)]


def cap_columns(caps: Iterable[ContactCap]) -> list[str]:
    """Name the observed shares: what is left of every cap now, then what will be left of each in later weeks."""
    return [f"left of cap {k}" + (f" in {ahead} weeks" if ahead else "") for k, _, ahead in observed(caps)]

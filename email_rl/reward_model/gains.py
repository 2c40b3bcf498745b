"""How far a model of outcomes is ahead of others that know little."""

from __future__ import annotations

from typing import Any, NamedTuple


class Gain(NamedTuple):
    """How far a model is ahead of another on the same mails, nats a mail, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} nats a mail ({self.low:.3f} to {self.high:.3f})"


class Gains(NamedTuple):
    """How far a model is ahead of the majority, and of a model that reads the context alone.

    A policy chooses texts: what the context tells, no text can change. `context_is_rival` tells whether the model must
    be ahead of the context: where the model reads the context, and that is ahead of the majority by more than chance. A
    model that reads the text alone owes the context nothing, however much more that tells.
    """

    over_majority: Gain
    over_context: Gain
    context_is_rival: bool

    @property
    def are_sure(self) -> bool:
        """Whether the model is ahead of the majority, and of a rival, by more than chance."""
        return self.over_majority.low > 0 and (self.over_context.low > 0 or not self.context_is_rival)

    def to_dict(self) -> dict[str, Any]:
        """Lay the figures out by the names of a verdict (reward_choice.py)."""
        (ahead, low, high), (ahead_of_context, context_low, context_high) = self.over_majority, self.over_context
        return {
            "ahead": ahead,
            "low": low,
            "high": high,
            "ahead_of_context": ahead_of_context,
            "context_low": context_low,
            "context_high": context_high,
            "context_is_rival": self.context_is_rival,
        }

    def weakest(self) -> str:
        """Say what the model is not surely ahead of, and how far it is ahead of that."""
        if self.over_majority.low <= 0:
            return f"the majority: by {self.over_majority}"
        return f"what the context alone tells: by {self.over_context}"

    def __str__(self) -> str:
        return f"of the majority by {self.over_majority} and of the context alone by {self.over_context}"

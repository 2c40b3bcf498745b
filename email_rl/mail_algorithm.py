"""What the algorithms on mails have in common: how they begin, and that a resumed run has the same mails."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from email_rl.data.dataset import MailDataset
from rlcore.algorithm import Algorithm


class MailAlgorithm(Algorithm):
    """An algorithm that learns from mails.

    Its network and its words depend on the mails, so that it starts from a folder of `save_pretrained`, and not from a
    checkpoint.
    """

    env_type = MailDataset
    env: MailDataset
    start_instead: str  #: what to ask for in place of init=PATH

    @cached_property
    def digest(self) -> str:
        """A text that differs where the mails do, or their sides."""
        return self.env.digest

    def start_from(self, state: dict[str, Any]) -> None:
        """Raise ValueError, which names the way to start from what was learnt."""
        raise ValueError(f"init: expected no checkpoint to start from: {self.start_instead}")

    def check_same_mails(self, state: dict[str, Any]) -> None:
        """Raise ValueError where the checkpoint's `state` is of other mails, or of the same on other sides."""
        if state["digest"] != self.digest:
            raise ValueError(
                f"resume: {self.env.name}: other mails, or the same in another split, than that run learnt from; "
                "expected its own (env.data, env.split, env.corpus and seed)"
            )

"""Which mails a model has learnt from: hashes beside the model, by which another run can tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from email_rl.data.mails import Mails

FILE = "learnt_from.json"  # in the folder of a reward model
HASH_BYTES = 8  # of 300,000 mails, two share a hash with a probability of 2e-9


@dataclass(frozen=True)
class LearntMails:
    """Hashes of the mails that a model was `fitted` to, and of those that chose its weights and its temperature."""

    fitted: frozenset[int]
    chosen_by: frozenset[int]

    @staticmethod
    def of(fitted: Mails, chosen_by: Mails) -> LearntMails:
        """Take note of mails, by context and text."""
        return LearntMails(frozenset(_hashes(fitted)), frozenset(_hashes(chosen_by)))

    def joined(self, other: LearntMails | None) -> LearntMails:
        """Return what this model and another, from whose weights it began, have learnt from."""
        return LearntMails(self.fitted | other.fitted, self.chosen_by | other.chosen_by) if other else self

    def unread(self, mails: Mails, group: Callable[[Mails], list[int]], *, fitted_only: bool = False) -> Mails:
        """Return the mails that the model does not know, or (`fitted_only`) was not fitted to.

        It knows a mail if it knows one of the mail's group (`group` numbers them): these are near-duplicates.
        """
        known = self.fitted if fitted_only else self.fitted | self.chosen_by
        is_known = [mail in known for mail in _hashes(mails)]
        if not any(is_known):
            return mails
        groups = group(mails)
        known_groups = {number for number, is_one in zip(groups, is_known) if is_one}
        return mails.rows([i for i, number in enumerate(groups) if number not in known_groups])

    # ── to and from disk ────────────────────────────────────────────────────────────────────────────────────────────
    def pack(self) -> dict[str, Tensor]:
        """Lay the hashes out for a checkpoint."""
        return {"fitted": torch.tensor(sorted(self.fitted)), "chosen_by": torch.tensor(sorted(self.chosen_by))}

    @staticmethod
    def unpack(state: dict[str, Tensor]) -> LearntMails:
        """Restore the result of `pack`."""
        return LearntMails(frozenset(state["fitted"].tolist()), frozenset(state["chosen_by"].tolist()))

    def save(self, folder: Path) -> None:
        """Write the hashes into the folder of a model."""
        plain = {"fitted": sorted(self.fitted), "chosen_by": sorted(self.chosen_by)}
        (folder / FILE).write_text(json.dumps(plain), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> LearntMails | None:
        """Read what `save` wrote; None where the folder has no such file. Raises ValueError for another content."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            return LearntMails(frozenset(map(int, plain["fitted"])), frozenset(map(int, plain["chosen_by"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected the hashes of mails, as a run writes them") from error


def _hashes(mails: Mails) -> list[int]:
    """Return a hash of each mail's context and text."""
    return [
        int.from_bytes(blake2b(f"{context}\0{text}".encode(), digest_size=HASH_BYTES).digest(), "big", signed=True)
        for context, text in zip(mails.contexts, mails.texts)
    ]

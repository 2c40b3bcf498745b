"""What the text algorithms learn from: mails with outcomes, split; and how what they learn is judged."""
from __future__ import annotations

import copy
import sys
from collections import Counter
from typing import Callable

import torch

from email_rl.data import splitting
from email_rl.data.mails import OUTCOMES, Mails, read


class EmailEnv:
    """The embedded corpus (data: null) or the user's CSV, as train, valid and test mails.

    `gold` is the corpus's truth, for `evaluation` alone; a CSV has none. values: what each outcome is worth.
    Raises ValueError for a file that can't be used, and prints a warning for what it can't support.
    """

    def __init__(self, device: torch.device, seed: int, *, data: str | None, corpus: Callable, split: dict, limits: dict,
                 values: list, evaluation: Callable):
        self.device, self.seed, self.evaluation = torch.device(device), seed, evaluation
        self.values = torch.tensor(values, dtype=torch.float64)
        if len(values) != len(OUTCOMES):
            raise ValueError(f"env.values: expected a number for each of {', '.join(OUTCOMES)}, got {values}")
        self.warnings: list[str] = []
        if data is None:
            market = corpus(seed)
            self.gold, self.name, self.splits = market.gold, "the embedded corpus", market.splits()
        else:
            self.gold, self.name = None, str(data)
            mails, numbers, given = read(self.name)
            self.splits = _given(mails, numbers, given, self.name, split) if given else self._split(mails, split, limits)
            self._doubt(mails, limits)
        for warning in self.warnings:
            print(f"warning: {warning}", file=sys.stderr)

    @property
    def train(self) -> Mails:
        """The mails to learn from."""
        return self.splits["train"]

    @property
    def valid(self) -> Mails:
        """The mails to choose by: early stopping, calibration."""
        return self.splits["valid"]

    @property
    def test(self) -> Mails:
        """The mails to judge by."""
        return self.splits["test"]

    @property
    def digest(self) -> int:
        """Tell two sets of mails apart."""
        return sum(mails.digest() for mails in self.splits.values())

    def judging(self) -> EmailEnv:
        """Return the environment of a judge: it learns from the split `judge` and stops by the test mails, which nothing else
        learns from. Raises ValueError where there is no such split.
        """
        if "judge" not in self.splits:
            raise ValueError(f"{self.name}: no truth to judge mails by: expected a share of the rows for a judge model, as in "
                             "env.split.shares={train: .5, valid: .1, test: .15, judge: .25}")
        other = copy.copy(self)
        other.splits = {"train": self.splits["judge"], "valid": self.test, "test": self.valid}
        return other

    def load_fitted(self, state: dict | None) -> None:
        """Take over nothing: mails are not fitted to."""

    def _split(self, mails: Mails, split: dict, limits: dict) -> dict[str, Mails]:
        shares = split["shares"]
        if not {"train", "valid", "test"} <= set(shares) or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"env.split.shares: expected shares of train, valid and test that add up to 1, got {shares}")
        if len(mails) < limits["rows"]:
            raise ValueError(f"{self.name}: {len(mails)} rows; expected at least {limits['rows']}")
        groups = splitting.near_duplicates(mails.texts, split["similarity"])
        sizes = Counter(groups)
        if len(sizes) < limits["groups"] or max(sizes.values()) > split["largest"] * len(mails):
            pairs = [f"{context} | {text}" for context, text in zip(mails.contexts, mails.texts)]
            groups = splitting.near_duplicates(pairs, 1.0)
            self.warnings.append(f"{self.name}: its {len(mails)} mails are few texts sent again and again ({len(sizes)} that "
                                 "differ): test mails share their texts with training, so figures hold for new contexts only")
        rows = splitting.stratified(mails, groups, shares, split["seed"])
        for name in shares:
            if not rows[name]:
                raise ValueError(f"{self.name}: only {len(set(groups))} mails that are no near-duplicates of each other; "
                                 f"none is left for {name}")
        return {name: mails.rows(rows[name]) for name in shares}

    def _doubt(self, mails: Mails, limits: dict) -> None:
        """Say what the file can't support."""
        counts = torch.bincount(mails.outcome, minlength=len(OUTCOMES)).tolist()
        if len(mails) < limits["few"]:
            n = len(self.test)
            self.warnings.append(
                f"{self.name}: {len(mails)} rows are few: {n} mails to test on tell an accuracy to ± {0.98 / n ** 0.5:.2f} "
                f"and can't tell models apart that are closer; a reward model from scratch needs thousands, so prefer "
                f"algo/rm=distilbert or local, and don't optimise mails against it (fewer than {limits['few']} rows)")
        for y, n in enumerate(counts):
            if n < limits["outcome"]:
                self.warnings.append(f"{self.name}: column outcome: {y} ({OUTCOMES[y]}) occurs {n} times: what leads to it "
                                     f"can't be learnt or tested (fewer than {limits['outcome']})")
        found = splitting.telling_sentences(mails, **limits["telling"])
        share = splitting.told(mails, found)
        if share >= limits["told"]:
            named = "; ".join(f'"{sentence}" → {y} ({hits} of {n})' for sentence, y, hits, n in found[:limits["named"]])
            more = f" and {len(found) - limits['named']} more" if len(found) > limits["named"] else ""
            self.warnings.append(
                f"{self.name}: the outcome of {share:.0%} of its mails can be read off fixed sentences: {named}{more}; a "
                "model will learn these sentences, not what makes mails work")


def _given(mails: Mails, numbers: list[int], given: list[str], name: str, split: dict) -> dict[str, Mails]:
    """Split as the file says; raise ValueError where near-duplicates stand on different sides."""
    if set(split["shares"]) != {"train", "valid", "test"}:
        raise ValueError(f"{name}: column split: knows train, valid and test only; env.split.shares has {split['shares']}")
    rows = {part: [i for i, said in enumerate(given) if said == part] for part in ("train", "valid", "test")}
    for part, members in rows.items():
        if not members:
            raise ValueError(f"{name}: column split: no row says {part}; expected train, valid and test")
    first: dict[int, int] = {}
    for i, group in enumerate(splitting.near_duplicates(mails.texts, split["similarity"])):
        j = first.setdefault(group, i)
        if given[i] != given[j]:
            raise ValueError(
                f"{name}: row {numbers[i]}, column split: '{given[i]}', but its text is a near-duplicate of row {numbers[j]}, "
                f"which is '{given[j]}'; expected near-duplicates on one side, or no such column")
    return {part: mails.rows(members) for part, members in rows.items()}

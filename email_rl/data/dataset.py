"""The mails that the text algorithms learn from, with outcomes and in splits, and the evaluation of the algorithms."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable

import torch

from email_rl.data import splitting
from email_rl.data.leaks import leak_warnings
from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import OUTCOMES, Mails, read_mails

SPLITS = ("train", "valid", "test")
JUDGE = "judge"  # a fourth split: mails for the judge alone


class MailDataset:
    """The embedded corpus (data: null) or the user's CSV, as train, valid and test mails.

    `gold` is the corpus's true outcome model, for `evaluation` alone; a CSV has none. `outcome_values` [K] are the
    values of the outcomes. Raises ValueError for a file that can't be used, and prints a warning for uses that it can't
    support.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        data: str | None,
        corpus: Callable,
        split: dict,
        limits: dict,
        outcome_values: list,
        bag_of_words: dict,
        evaluation: Callable | None,
    ):
        self.device, self.seed, self.evaluation = torch.device(device), seed, evaluation
        self.bag_of_words, self.shares, self.split_seed = bag_of_words, split["shares"], split["seed"]
        self.grouping = {
            "similarity": split["similarity"],
            "min_distinct_texts": limits["min_distinct_texts"],
            "max_group_share": split["max_group_share"],
        }
        self.min_rows = limits["min_rows"]
        self.outcome_values = torch.tensor(outcome_values, dtype=torch.float64)
        if len(outcome_values) != len(OUTCOMES):
            raise ValueError(
                f"env.outcome_values: expected a number for each of {', '.join(OUTCOMES)}, got {outcome_values}"
            )
        self.warnings: list[str] = []
        if data is None:
            market = corpus(seed)
            self.gold, self.name, self.splits = market.gold, "the embedded corpus", market.splits()
        else:
            self.gold, self.name = None, str(data)
            _check_shares(self.shares)
            mails, row_numbers, sides = read_mails(self.name)
            self.splits = (
                _split_as_given(mails, row_numbers, sides, self.name, split)
                if sides
                else self._split(mails, split, limits)
            )
            self._warn_of_limits(mails, limits, split["similarity"])
        for warning in self.warnings:
            print(f"warning: {warning}", file=sys.stderr)

    @property
    def train(self) -> Mails:
        """The mails for training."""
        return self.splits["train"]

    @property
    def valid(self) -> Mails:
        """The mails for early stopping and calibration."""
        return self.splits["valid"]

    @property
    def test(self) -> Mails:
        """The mails for the final evaluation."""
        return self.splits["test"]

    @property
    def digest(self) -> str:
        """A text that differs where the mails do, or their sides."""
        sides = sorted((side, mails.digest()) for side, mails in self.splits.items())
        return hashlib.sha256(repr(sides).encode()).hexdigest()

    def unread(self, side: str, learnt: LearntMails | None, *, fitted_only: bool = False) -> Mails:
        """Return the mails of a side that a model has not read (`LearntMails.unread`); all where nothing is known."""
        mails = self.splits[side]
        return learnt.unread(mails, self.groups, fitted_only=fitted_only) if learnt else mails

    def rows_to_draw_from(self, mails: Mails, most: int | None) -> list[int]:
        """Return the rows of a side's mails, in random order where there are more than `most` (None: in their order).

        A file may be sorted, by outcome or by industry: its first rows do not stand for all. The embedded corpus is in
        random order.
        """
        n = len(mails)
        if most is None or n <= most or self.gold:
            return list(range(n))
        return torch.randperm(n, generator=torch.Generator().manual_seed(self.split_seed)).tolist()

    def sample(self, mails: Mails, most: int) -> Mails:
        """Return at most `most` of a side's mails, drawn at random (`rows_to_draw_from`)."""
        return mails.rows(self.rows_to_draw_from(mails, most)[:most])

    def judge_dataset(self, learnt: LearntMails | None = None) -> MailDataset:
        """Return the dataset of a judge, a reward model that scores the mails of other policies.

        The judge learns from the split `judge` alone, which no other model reads: part of it trains the judge, and the
        rest, in the proportion of env.split.shares, stops its training and sets its temperature. Mails that the reward
        model knows (`learnt`) are left out. Raises ValueError where there is no such split, or where it is too small.
        """
        if JUDGE not in self.splits:
            raise ValueError(
                f"{self.name}: no truth to judge mails by: expected a share of the rows for a judge model, as in "
                "env.split.shares={train: .5, valid: .1, test: .15, judge: .25}"
            )
        mails = self.unread(JUDGE, learnt)
        both = self.shares["train"] + self.shares["valid"]
        shares = {name: self.shares[name] / both for name in ("train", "valid")}
        rows = splitting.stratified_split(mails, self.groups(mails), shares, self.split_seed)
        if not all(rows.values()):
            raise ValueError(
                f"{self.name}: split judge: its {len(mails)} mails are near-duplicates of each other; expected mails "
                "to train a judge, and others to stop its training"
            )
        valid = mails.rows(rows["valid"])
        return self.with_splits({"train": mails.rows(rows["train"]), "valid": valid, "test": valid})

    def with_splits(self, splits: dict[str, Mails]) -> MailDataset:
        """Return this dataset with other mails."""
        other = copy.copy(self)
        other.splits = splits
        return other

    def groups(self, mails: Mails) -> list[int]:
        """Number the groups of mails that no split may part, as in the split of a file."""
        return splitting.groups_to_split(mails, **self.grouping)[0]

    def load_fitted(self, state: dict | None) -> None:
        """Do nothing: no preprocessing is fitted to mails."""

    def _split(self, mails: Mails, split: dict, limits: dict) -> dict[str, Mails]:
        shares = self.shares
        if len(mails) < limits["min_rows"]:
            raise ValueError(f"{self.name}: {len(mails)} rows; expected at least {limits['min_rows']}")
        groups, texts = splitting.groups_to_split(mails, **self.grouping)
        if texts is not None:
            self.warnings.append(
                f"{self.name}: its {len(mails)} mails are few texts sent again and again ({texts} that "
                "differ): test mails share their texts with training, so figures hold for new contexts only"
            )
        rows = splitting.stratified_split(mails, groups, shares, split["seed"])
        for name in shares:
            if not rows[name]:
                raise ValueError(
                    f"{self.name}: only {len(set(groups))} mails that are no near-duplicates of each other; "
                    f"none is left for {name}"
                )
        return {name: mails.rows(rows[name]) for name in shares}

    def _warn_of_limits(self, mails: Mails, limits: dict, similarity: float) -> None:
        """Collect warnings of uses that the file can't support."""
        counts = torch.bincount(mails.outcome, minlength=len(OUTCOMES)).tolist()
        if len(mails) < limits["few_rows"]:
            n = len(self.test)
            self.warnings.append(
                f"{self.name}: {len(mails)} rows are few: {n} mails to test on tell an accuracy to "
                f"± {0.98 / n**0.5:.2f} "
                f"and can't tell models apart that are closer; a reward model from scratch needs thousands, so prefer "
                f"algo/encoder=minilm, distilbert or local (fewer than {limits['few_rows']} rows)"
            )
        for y, n in enumerate(counts):
            if n < limits["min_outcome_rows"]:
                self.warnings.append(
                    f"{self.name}: column outcome: {y} ({OUTCOMES[y]}) occurs {n} times: what leads to it "
                    f"can't be learnt or tested (fewer than {limits['min_outcome_rows']})"
                )
        told = leak_warnings(
            mails,
            splitting.near_duplicate_groups(mails.texts, similarity),
            label_leaks_settings=limits["label_leaks"],
            max_leak_share=limits["max_leak_share"],
            max_bag_accuracy=limits["max_bag_accuracy"],
            shown_leaks=limits["shown_leaks"],
        )
        self.warnings += [f"{self.name}: {warning}" for warning in told]


def _check_shares(shares: dict[str, float]) -> None:
    """Raise ValueError where the shares do not split a file into train, valid and test, and perhaps judge."""
    names = set(shares)
    if (
        not set(SPLITS) <= names <= {*SPLITS, JUDGE}
        or min(shares.values()) <= 0
        or abs(sum(shares.values()) - 1) > 1e-6
    ):
        raise ValueError(
            "env.split.shares: expected shares of train, valid and test, and of judge where a policy is judged, that "
            f"add up to 1, got {shares}"
        )


def _split_as_given(mails: Mails, row_numbers: list[int], sides: list[str], name: str, split: dict) -> dict[str, Mails]:
    """Split by the file's column `split`; raise ValueError where near-duplicates are on different sides.

    The column names the sides of env.split.shares; rows of a judge are left out, and counted, where these shares have
    none.
    """
    left_out = sum(side not in split["shares"] for side in sides)
    if left_out:
        print(
            f"{name}: {left_out:,} rows of other sides than {', '.join(split['shares'])} are left out", file=sys.stderr
        )
    rows = {side: [i for i, given in enumerate(sides) if given == side] for side in split["shares"]}
    for side, members in rows.items():
        if not members:
            raise ValueError(
                f"{name}: column split: no row says {side}; expected rows for each of {', '.join(rows)} "
                "(env.split.shares)"
            )
    first: dict[int, int] = {}
    for i, group in enumerate(splitting.near_duplicate_groups(mails.texts, split["similarity"])):
        j = first.setdefault(group, i)
        if sides[i] != sides[j]:
            raise ValueError(
                f"{name}: row {row_numbers[i]}, column split: '{sides[i]}', but its text is a near-duplicate of row "
                f"{row_numbers[j]}, which is '{sides[j]}'; expected near-duplicates on one side, or no such column"
            )
    return {side: mails.rows(members) for side, members in rows.items()}

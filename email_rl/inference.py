"""Inference: mails for contexts by a trained policy, with the outcome probabilities by its reward model."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from email_rl.data.mails import OUTCOMES, read_records, words
from email_rl.evaluation import text_features
from email_rl.models.outcome_classifier import outcome_reward
from email_rl.models.outcome_model import OutcomeModel, unpack_outcome_model
from email_rl.models.policy import LanguageModelPolicy
from rlcore.runs import checkpoint

COLUMNS = (
    "context",
    "email_text",
    *(f"p_{name.replace(' ', '_')}" for name in OUTCOMES),
    "predicted",
    "reward",
    "words",
    "call_to_action",
    "question",
    "ended",
)


ARM = "arm"  #: column of an A/B test
ARMS = ("policy", "reference")  #: its values: after PPO, and before


class ScoredMail(NamedTuple):
    """A mail with P(outcome) [K] by the reward model, its reward, and its call to action and question, if any.

    A mail that has not `ended` was cut at the policy's longest length, perhaps within a sentence.
    """

    context: str
    text: str
    probabilities: list[float]
    reward: float
    call_to_action: str | None
    question: str | None
    ended: bool

    @property
    def predicted(self) -> str:
        """The likeliest outcome."""
        return OUTCOMES[max(range(len(OUTCOMES)), key=self.probabilities.__getitem__)]

    def to_row(self) -> list:
        """Return the mail as a row of COLUMNS."""
        return [
            self.context,
            self.text,
            *(f"{p:.4f}" for p in self.probabilities),
            self.predicted,
            f"{self.reward:.4f}",
            len(words(self.text)),
            *("yes" if found else "no" for found in (self.call_to_action, self.question, self.ended)),
        ]

    def to_text(self) -> str:
        """Return the mail as text for a terminal."""
        likely = ", ".join(f"{name} {p:.2f}" for name, p in zip(OUTCOMES, self.probabilities))
        found = (
            f"{name}: {'yes, ' + repr(sentence) if sentence else 'no'}"
            for name, sentence in (("call to action", self.call_to_action), ("question", self.question))
        )
        return "\n".join(
            (
                f"── {self.context}",
                self.text,
                f"── {likely} → {self.predicted}; reward {self.reward:.2f}; {len(words(self.text))} words",
                f"── {'; '.join(found)}{'' if self.ended else '; cut: it has no end'}",
                "",
            )
        )


class MailGenerator:
    """Policy and reward model of a checkpoint of algo=ppo_kl; their dataset is not needed."""

    def __init__(
        self,
        policy: LanguageModelPolicy,
        reward_model: OutcomeModel,
        example_contexts: list[str],
        outcome_values: list,
        reward: str,
        seed: int,
    ):
        self.example_contexts = example_contexts  #: of the mails that the policy was trained for
        self.policy, self.reward_model, self.reward_kind = policy, reward_model, reward
        self.outcome_values = torch.tensor(outcome_values, dtype=torch.float64)
        self.generator = torch.Generator(policy.device).manual_seed(seed)

    @staticmethod
    def load(
        path: str, state: dict, device: torch.device, batch_size: int, seed: int, arm: str = ARMS[0]
    ) -> MailGenerator:
        """Restore the policy of an arm from the checkpoint `path`, read as `state`.

        Raises ValueError where the checkpoint is of another algorithm.
        """
        agent, config = state["agent"], state["config"]
        if not {"policy", "reward_model"} <= set(agent):
            raise ValueError(
                f"{path}: expected a checkpoint of algo=ppo_kl, which has a policy and a reward model, got one "
                f"of algo={state['name']}"
            )
        policy = LanguageModelPolicy.unpack(agent[arm]).to(device)
        reward_model = unpack_outcome_model(agent["reward_model"], device, batch_size)
        return MailGenerator(
            policy,
            reward_model,
            agent["example_contexts"],
            config["env"]["outcome_values"],
            config["algo"]["reward"],
            seed,
        )

    def truncated(self, contexts: list[str]) -> list[int]:
        """Return the contexts that are longer than the policy's prompts, and lose their beginning."""
        return [i for i, row in enumerate(self.policy.full_prompts(contexts)) if len(row) > self.policy.prompt_tokens]

    def generate(
        self,
        contexts: list[str],
        mails_per_context: int,
        *,
        temperature: float | None,
        top_k: int,
        top_p: float,
        batch_size: int,
    ) -> list[ScoredMail]:
        """Write `mails_per_context` mails for each context; the mails of a context are consecutive.

        Without a temperature (None) they are drawn at the one that the policy was trained at.
        """
        tokens, texts = self.policy.generate(
            contexts,
            mails_per_context,
            self.generator,
            temperature=self.policy.temperature if temperature is None else temperature,
            top_k=top_k,
            top_p=top_p,
            batch_size=batch_size,
        )
        contexts = [context for context in contexts for _ in range(mails_per_context)]
        p: Tensor = self.reward_model.probabilities(contexts, texts).double()
        rewards = outcome_reward(p, self.outcome_values, self.reward_kind)
        return [
            ScoredMail(
                context=context,
                text=text,
                probabilities=row,
                reward=reward,
                call_to_action=text_features.call_to_action(text),
                question=text_features.question(text),
                ended=ended,
            )
            for context, text, row, reward, ended in zip(
                contexts, texts, p.tolist(), rewards.tolist(), self.policy.has_ended(tokens).tolist()
            )
        ]


def summarize(mails: list[ScoredMail]) -> str:
    """Return the summary of mails in one line: mean reward, outcomes, calls to action, questions, and mails cut."""
    n = len(mails)
    predicted = Counter(mail.predicted for mail in mails)
    outcomes = ", ".join(f"{name} {predicted[name] / n:.0%}" for name in OUTCOMES)
    calls = sum(mail.call_to_action is not None for mail in mails) / n
    questions = sum(mail.question is not None for mail in mails) / n
    cut = sum(not mail.ended for mail in mails)
    mean_words = sum(len(words(mail.text)) for mail in mails) / n
    return (
        f"{n:,} mails; mean reward {sum(mail.reward for mail in mails) / n:.2f}; likeliest outcome: {outcomes}; "
        f"{calls:.0%} with a call to action, {questions:.0%} with a question; {mean_words:.0f} words on average; "
        f"{cut:,} of {n:,} were cut at the policy's longest length"
    )


def read_contexts(path: str) -> list[dict[str, str]]:
    """Read a CSV with a column `context` among others, whose names stay as written.

    Raises ValueError, in one line with row and column.
    """
    rows = [values for *_, values in read_records(path, ("context",), ("context",), "one context a row")]
    if not rows:
        raise ValueError(f"{path}: no rows; expected one context a row below the header")
    return rows


def draw_arms(rows: list[dict[str, str]], seed: int, out: str) -> list[dict[str, str]]:
    """Return the rows with a column ARM: each row's arm is drawn by itself, every arm with equal chances.

    The draws depend on the seed and on the path of the file `out`, so that two tests of the same rows have arms of
    their own: else what the first mailing did would count for the second one's arm.
    """
    hashed = sha256(f"{seed} {Path(out).resolve()}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(hashed[:8], "big") >> 1)
    draws = torch.randint(len(ARMS), (len(rows),), generator=generator).tolist()
    return [{**row, ARM: ARMS[draw]} for row, draw in zip(rows, draws)]


def generate_by_arm(
    generators: dict[str, MailGenerator], rows: list[dict[str, str]], mails_per_context: int, sampling: dict
) -> list[ScoredMail]:
    """Write mails for rows by each row's arm, in the order of the rows; the mails of a row are consecutive."""
    mails: dict[str, Iterator[ScoredMail]] = {}
    for arm, generator in generators.items():
        contexts = [row["context"] for row in rows if row[ARM] == arm]
        mails[arm] = iter(generator.generate(contexts, mails_per_context, **sampling) if contexts else [])
    return [next(mails[row[ARM]]) for row in rows for _ in range(mails_per_context)]


def check_columns(path: str, rows: list[dict[str, str]], has_arms: bool) -> None:
    """Raise ValueError where a column of contexts, read from `path`, has the name of one that will be written."""
    written = (*COLUMNS[1:], ARM) if has_arms else COLUMNS[1:]
    for name in rows[0]:
        if name.lower() in written:
            raise ValueError(f"{path}: row 1: column '{name}' is one that will be written; expected another name")


def save_mails(path: str, rows: list[dict[str, str]], mails: list[ScoredMail]) -> None:
    """Write a CSV, UTF-8, a line a mail [N · mails]: the columns of the rows that were read [N], and COLUMNS."""
    other_columns, mails_per_context = [name for name in rows[0] if name != "context"], len(mails) // len(rows)

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow([*other_columns, *COLUMNS])
            lines.writerows(
                [*(rows[i // mails_per_context][name] for name in other_columns), *mail.to_row()]
                for i, mail in enumerate(mails)
            )

    checkpoint.atomic(path, fill)

"""A trained policy at work: mails for contexts, and what its reward model makes of them."""
from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from email_rl.evaluation import text_features as signs
from email_rl.data.mails import OUTCOMES, records, words
from email_rl.models.policy import Policy
from email_rl.models.outcome_classifier import Scorer, worth
from rlcore import checkpoint

COLUMNS = ("context", "email_text", *(f"p_{name.replace(' ', '_')}" for name in OUTCOMES), "predicted", "reward", "words",
           "call_to_action", "question")


class Written(NamedTuple):
    """A mail: P(outcome) [K] by the reward model, its reward, and the sentences that call to action and ask, if any."""

    context: str
    text: str
    probabilities: list[float]
    reward: float
    call_to_action: str | None
    question: str | None

    @property
    def predicted(self) -> str:
        """The likeliest outcome."""
        return OUTCOMES[max(range(len(OUTCOMES)), key=self.probabilities.__getitem__)]

    def fields(self) -> list:
        """Lay it out as COLUMNS."""
        return [self.context, self.text, *(f"{p:.4f}" for p in self.probabilities), self.predicted, f"{self.reward:.4f}",
                len(words(self.text)), *("yes" if found else "no" for found in (self.call_to_action, self.question))]

    def shown(self) -> str:
        """Lay it out for a terminal."""
        likely = ", ".join(f"{name} {p:.2f}" for name, p in zip(OUTCOMES, self.probabilities))
        found = (f"{name}: {'yes, ' + repr(said) if said else 'no'}"
                 for name, said in (("call to action", self.call_to_action), ("question", self.question)))
        return "\n".join((f"── {self.context}", self.text, f"── {likely} → {self.predicted}; reward {self.reward:.2f}; "
                          f"{len(words(self.text))} words", f"── {'; '.join(found)}", ""))


class Writer:
    """Policy and reward model of a checkpoint of algo=ppo_kl; the environment they learnt from is not needed."""

    def __init__(self, policy: Policy, scorer: Scorer, values: list, reward: str, seed: int):
        self.policy, self.scorer, self.reward = policy, scorer, reward
        self.values = torch.tensor(values, dtype=torch.float64)
        self.generator = torch.Generator(policy.device).manual_seed(seed)

    @staticmethod
    def load(path: str, state: dict, device: torch.device, batch_size: int, seed: int) -> Writer:
        """Restore what checkpoint `path`, read as `state`, holds; raise ValueError where it is of another algorithm."""
        agent, config = state["agent"], state["config"]
        if not {"policy", "scorer"} <= set(agent):
            raise ValueError(f"{path}: expected a checkpoint of algo=ppo_kl, which has a policy and a reward model, got one "
                             f"of algo={state['name']}")
        policy = Policy.unpack(agent["policy"], config["algo"]["writing"]).to(device)
        return Writer(policy, Scorer.unpack(agent["scorer"], device, batch_size), config["env"]["values"],
                      config["algo"]["reward"], seed)

    def cut(self, contexts: list[str]) -> list[int]:
        """Return which contexts are longer than the prompts that the policy reads, and lose their beginning."""
        return [i for i, row in enumerate(self.policy.prompts(contexts)) if len(row) > self.policy.query_tokens]

    def write(self, contexts: list[str], mails: int, *, temperature: float, top_k: int, top_p: float,
              batch_size: int) -> list[Written]:
        """Write `mails` mails for each context; those of a context stand together."""
        _, texts = self.policy.write(contexts, mails, self.generator, temperature=temperature, top_k=top_k, top_p=top_p,
                                     batch_size=batch_size)
        contexts = [context for context in contexts for _ in range(mails)]
        p: Tensor = self.scorer.probabilities(contexts, texts).double()
        return [Written(context, text, row, reward, signs.call_to_action(text), signs.question(text)) for context, text, row, reward
                in zip(contexts, texts, p.tolist(), worth(p, self.values, self.reward).tolist())]


def read_contexts(path: str) -> list[dict[str, str]]:
    """Read a CSV with a column `context`, and whatever else; raise ValueError, in one line with row and column."""
    rows = [values for *_, values in records(path, ("context",), ("context",), "one context a row")]
    if not rows:
        raise ValueError(f"{path}: no rows; expected one context a row below the header")
    taken = [name for name in rows[0] if name in COLUMNS[1:]]
    if taken:
        raise ValueError(f"{path}: row 1: column '{taken[0]}' is one that will be written; expected another name")
    return rows


def save(path: str, rows: list[dict[str, str]], written: list[Written]) -> None:
    """Write a CSV, UTF-8: the columns of what was read [N] and COLUMNS, a line a mail [N · mails]."""
    kept, each = [name for name in rows[0] if name != "context"], len(written) // len(rows)

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow([*kept, *COLUMNS])
            lines.writerows([*(rows[i // each][name] for name in kept), *mail.fields()] for i, mail in enumerate(written))
    checkpoint.atomic(path, fill)

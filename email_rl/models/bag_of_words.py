"""A bag of words: multinomial logistic regression on word counts, in torch; a baseline, and a reward model."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import OUTCOMES, Mails, words
from email_rl.data.metrics import fit_temperature, log_losses

FILE = "bag_of_words.json"  # in a reward model's folder, in place of a network's files


class BagOfWords:
    """Multinomial logistic regression on the counts of the words of context and text.

    `known_words` are the words with a weight; all others are ignored. A word in the context differs from the same word
    in the text.
    """

    reads_context = True
    learnt: LearntMails | None = None  #: the mails that it has learnt from; None: unknown

    def __init__(self, known_words: list[str]):
        self.vocabulary = {word: i for i, word in enumerate(known_words, 1)}  # 0 pads
        self.weight = nn.EmbeddingBag(len(known_words) + 1, 3, mode="sum", padding_idx=0)
        nn.init.zeros_(self.weight.weight)
        self.bias = nn.Parameter(torch.zeros(3))
        self.temperature = 1.0

    @staticmethod
    def fit(train: Mails, valid: Mails, seed: int, **settings: Any) -> BagOfWords:
        """Train on mails, by the settings of `train`; the validation mails choose the epoch and the temperature."""
        bag = BagOfWords.train(train, valid, seed, **settings)
        logits = bag.logits(bag.ids(valid.contexts, valid.texts)).detach()
        bag.temperature = fit_temperature(logits, valid.outcome, torch.ones(len(valid)))
        bag.learnt = LearntMails.of(train, valid)
        return bag

    @staticmethod
    def fit_all(mails: Mails, folds: list[list[int]], seed: int, **settings: Any) -> BagOfWords:
        """Train on all mails to the end; each fold's logits without the fold's mails choose the temperature.

        `folds` has the rows of each fold. Few mails are too few to hold some of them back.
        """
        held_out = torch.zeros(len(mails), len(OUTCOMES))
        for fold in folds:
            kept, rest = mails.rows(sorted(set(range(len(mails))) - set(fold))), mails.rows(fold)
            part = BagOfWords.train(kept, kept, seed, **settings)
            held_out[fold] = part.logits(part.ids(rest.contexts, rest.texts)).detach()
        bag = BagOfWords.train(mails, mails, seed, **settings)
        bag.temperature = fit_temperature(held_out, mails.outcome, torch.ones(len(mails)))
        bag.learnt = LearntMails.of(mails, mails.rows([]))
        return bag

    @staticmethod
    def train(
        train: Mails,
        valid: Mails,
        seed: int,
        *,
        lr: float,
        weight_decay: float,
        epochs: int,
        min_steps: int,
        batch_size: int,
    ) -> BagOfWords:
        """Train on mails, for at least `min_steps` gradient steps, at temperature 1; `valid` chooses the epoch."""
        counts = Counter(word for mail in zip(train.contexts, train.texts) for word in set(BagOfWords.words(*mail)))
        bag = BagOfWords(sorted(word for word, n in counts.items() if n > 1))
        generator = torch.Generator().manual_seed(seed)
        share = torch.bincount(train.outcome, minlength=3).clamp_min(1) / len(train)
        with torch.no_grad():
            bag.bias.copy_(share.log())
        optimizer = torch.optim.AdamW([bag.weight.weight, bag.bias], lr=lr, weight_decay=weight_decay)
        ids, valid_ids = bag.ids(train.contexts, train.texts), bag.ids(valid.contexts, valid.texts)
        best_loss = math.inf
        best: tuple[Tensor, Tensor] | None = None
        # few mails need more passes; a pass over fewer mails than a batch is one step
        epochs = max(epochs, math.ceil(min_steps * min(batch_size, len(train)) / len(train)))
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = lr * (1 - epoch / epochs)
            for rows in torch.randperm(len(train), generator=generator).split(batch_size):
                loss = nn.functional.cross_entropy(bag.logits(ids[rows]), train.outcome[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                valid_loss = log_losses(bag.logits(valid_ids).softmax(1), valid.outcome).mean().item()
            if valid_loss < best_loss:
                best_loss = valid_loss
                best = (bag.weight.weight.detach().clone(), bag.bias.detach().clone())
        if best is None:
            raise ValueError(f"env.bag_of_words.lr: {lr}: training diverged; expected a lower one")
        with torch.no_grad():
            best_weight, best_bias = best
            bag.weight.weight.copy_(best_weight)
            bag.bias.copy_(best_bias)
        return bag

    @staticmethod
    def words(context: str, text: str) -> list[str]:
        """Name the words of a mail; a word in the context differs from the same word in the text."""
        return ["context " + word for word in words(context)] + words(text)

    def ids(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Number the words of each mail, int32 [N, L], zeros after the last."""
        known = [[i for word in self.words(*mail) if (i := self.vocabulary.get(word))] for mail in zip(contexts, texts)]
        longest = max(1, max(map(len, known)))
        return torch.tensor([row + [0] * (longest - len(row)) for row in known], dtype=torch.int32)

    def logits(self, ids: Tensor) -> Tensor:
        """Add up the words' weights [N, 3]."""
        return self.weight(ids) + self.bias

    @torch.no_grad()
    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3]."""
        return (self.logits(self.ids(contexts, texts)) / self.temperature).softmax(1)

    # ── to and from disk ────────────────────────────────────────────────────────────────────────────────────────────
    def pack(self) -> dict:
        """Lay everything out for a checkpoint."""
        return {
            "known_words": list(self.vocabulary),
            "weight": self.weight.weight.detach(),
            "bias": self.bias.detach(),
            "temperature": self.temperature,
        }

    @staticmethod
    def unpack(state: dict) -> BagOfWords:
        """Restore the result of `pack`."""
        bag = BagOfWords(state["known_words"])
        with torch.no_grad():
            bag.weight.weight.copy_(torch.as_tensor(state["weight"]))
            bag.bias.copy_(torch.as_tensor(state["bias"]))
        bag.temperature = state["temperature"]
        return bag

    def export(self, folder: Path) -> None:
        """Write the words and their weights, as JSON."""
        folder.mkdir(exist_ok=True)
        plain = {key: x.tolist() if isinstance(x, Tensor) else x for key, x in self.pack().items()}
        (folder / FILE).write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> BagOfWords:
        """Read what `export` wrote. Raises ValueError where the file holds something else."""
        path = folder / FILE
        try:
            return BagOfWords.unpack(json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: no bag of words of this project ({str(error).splitlines()[0]})") from error

"""The bag-of-words baseline: multinomial logistic regression on word counts, in torch."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from email_rl.data.mails import Mails, words
from email_rl.data.metrics import fit_temperature, log_losses


class BagOfWords:
    """Multinomial logistic regression on the counts of the words of context and text.

    The validation mails choose the epoch and the temperature. Training takes at least `min_steps` gradient steps.
    """

    def __init__(
        self,
        train: Mails,
        valid: Mails,
        seed: int,
        *,
        lr: float,
        weight_decay: float,
        epochs: int,
        min_steps: int,
        batch_size: int,
    ):
        counts = Counter(word for mail in zip(train.contexts, train.texts) for word in set(self.words(*mail)))
        # 0 pads
        self.vocabulary = {word: i for i, word in enumerate(sorted(w for w, n in counts.items() if n > 1), 1)}
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.EmbeddingBag(len(self.vocabulary) + 1, 3, mode="sum", padding_idx=0)
        nn.init.zeros_(self.weight.weight)
        share = torch.bincount(train.outcome, minlength=3).clamp_min(1) / len(train)
        self.bias = nn.Parameter(share.log())
        self.temperature = 1.0
        optimizer = torch.optim.AdamW([self.weight.weight, self.bias], lr=lr, weight_decay=weight_decay)
        ids = self.ids(train)
        best_loss = math.inf
        best: tuple[Tensor, Tensor] | None = None
        epochs = max(epochs, -(-min_steps * batch_size // len(train)))  # few mails need more passes
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = lr * (1 - epoch / epochs)
            for rows in torch.randperm(len(train), generator=generator).split(batch_size):
                loss = nn.functional.cross_entropy(self.logits(ids[rows]), train.outcome[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            valid_loss = log_losses(self.probabilities(valid), valid.outcome).mean().item()
            if valid_loss < best_loss:
                best_loss = valid_loss
                best = (self.weight.weight.detach().clone(), self.bias.detach().clone())
        if best is None:
            raise ValueError(f"env.evaluation.bag_of_words.lr: {lr}: training diverged; expected a lower one")
        with torch.no_grad():
            best_weight, best_bias = best
            self.weight.weight.copy_(best_weight)
            self.bias.copy_(best_bias)
            self.temperature = fit_temperature(self.logits(self.ids(valid)), valid.outcome, torch.ones(len(valid)))

    @staticmethod
    def words(context: str, text: str) -> list[str]:
        """Name the words of a mail; a word in the context differs from the same word in the text."""
        return ["context " + word for word in words(context)] + words(text)

    def ids(self, mails: Mails) -> Tensor:
        """Number the words of each mail, int32 [N, L], zeros after the last."""
        known = [
            [i for word in self.words(*mail) if (i := self.vocabulary.get(word))]
            for mail in zip(mails.contexts, mails.texts)
        ]
        longest = max(1, max(map(len, known)))
        return torch.tensor([row + [0] * (longest - len(row)) for row in known], dtype=torch.int32)

    def logits(self, ids: Tensor) -> Tensor:
        """Add up the words' weights [N, 3]."""
        return self.weight(ids) + self.bias

    @torch.no_grad()
    def probabilities(self, mails: Mails) -> Tensor:
        """Return P(outcome) [N, 3]."""
        return (self.logits(self.ids(mails)) / self.temperature).softmax(1)

"""What a reward model is compared with or mixed with: what the context alone tells, and the majority."""

from __future__ import annotations

from torch import Tensor

from email_rl.data import metrics
from email_rl.data.mails import Mails
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.outcome_model import OutcomePredictor


class OfContext:
    """A bag of the words of contexts: what is told of a mail whatever its text."""

    reads_context = True

    def __init__(self, bag: BagOfWords):
        self.bag = bag

    @staticmethod
    def fit(train: Mails, valid: Mails, seed: int, bag_settings: dict) -> OfContext:
        """Train on the contexts of mails."""
        return OfContext(BagOfWords.fit(without_texts(train), without_texts(valid), seed, **bag_settings))

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3]."""
        return self.bag.probabilities(contexts, [""] * len(texts))


def without_texts(mails: Mails) -> Mails:
    """Return mails of the same contexts and outcomes, with empty texts."""
    return Mails(mails.contexts, [""] * len(mails), mails.outcome)


class WithMajority:
    """A model whose probabilities are mixed with the shares of its training mails' outcomes.

    A verdict over few mails is of such a mixture, because few mails choose too sure a temperature.
    """

    def __init__(self, model: OutcomePredictor, train: Mails, majority_share: float):
        self.model, self.train, self.majority_share = model, train, majority_share
        self.reads_context = model.reads_context

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3]."""
        p = self.model.probabilities(contexts, texts).double()
        return (1 - self.majority_share) * p + self.majority_share * metrics.majority_shares(self.train, len(texts))

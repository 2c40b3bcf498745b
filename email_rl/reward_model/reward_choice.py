"""Which model of outcomes may be a reward: an encoder, a bag of words where that knows as much, or none.

A reward model that knows nothing more than the majority's shares gives every mail the same reward up to noise, and a
policy would be trained on that noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from email_rl.data import metrics, splitting
from email_rl.data.mails import OUTCOMES, Mails
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.outcome_model import OutcomeModel

FitModel = Callable[[Mails, Mails], OutcomeModel]  # of training and validation mails


@dataclass(frozen=True, kw_only=True)
class ChoiceSettings:
    """How models are compared: paired bootstrap of `bootstrap_samples`; cross-fitting in `folds` where mails are few.

    Mails are few if there are fewer validation mails than `few_mails`. `must_beat_majority` ends a run without a model
    that is ahead of the majority.
    """

    seed: int
    bootstrap_samples: int
    folds: int
    majority_share: float
    few_mails: int
    must_beat_majority: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The model that was chosen, and how far it is ahead of the majority on mails that it has not learnt from.

    `ahead` is the majority's log-loss less the model's, nats a mail, with its 95 % interval `low` to `high`.
    `behind_bag` is the encoder's log-loss less the bag of words' on the same mails; None: the encoder was not ahead on
    the few validation mails, and was not fitted again.
    """

    chosen: str
    ahead: float
    low: float
    high: float
    mails: int
    behind_bag: float | None

    @property
    def is_informed(self) -> bool:
        """Whether the model is ahead of the majority by more than chance."""
        return self.low > 0

    def to_dict(self) -> dict:
        """Lay the verdict out for a JSON file."""
        return asdict(self)

    def describe(self) -> str:
        """Say in one line which model was chosen, and why."""
        name = self.chosen.replace("_", " ")
        why = "ahead of the bag of words" if self.chosen == "encoder" else "the encoder is not ahead of it"
        gap = "" if self.behind_bag is None else f", by {-self.behind_bag:+.3f} nats a mail"
        return (
            f"{name} ({why}{gap}); ahead of the majority by {self.ahead:.3f} nats a mail ({self.low:.3f} to "
            f"{self.high:.3f}) on {self.mails:,} mails that it has not learnt from"
        )


def choose_reward_model(
    encoder: OutcomeModel,
    fit_encoder: FitModel,
    fit_bag: FitModel,
    train: Mails,
    valid: Mails,
    similarity: float,
    settings: ChoiceSettings,
) -> tuple[OutcomeModel, Verdict]:
    """Return the encoder if it is ahead of a bag of words on the validation mails by more than chance, else the bag.

    Where validation mails are few, both are compared with each other and with the majority by cross-fitting over
    training and validation mails: training has chosen its weights by the few, and the more weights there are to choose
    from, the more that flatters them. The encoder is asked only where it seems ahead, or where the bag knows nothing.
    """
    bag = fit_bag(train, valid)
    of_bag = _log_losses(bag, valid)
    of_encoder: Tensor | None = _log_losses(encoder, valid)
    of_majority = metrics.log_losses(_shares(train, valid), valid.outcome)
    assert of_encoder is not None
    is_encoder = _lower_bound(of_bag - of_encoder, settings) > 0
    if len(valid) < settings.few_mails:
        folds = _folds(train + valid, similarity, settings)
        of_majority, of_bag = _cross_fitted(fit_bag, folds, settings)
        knows = _lower_bound(of_majority - of_bag, settings) > 0
        if is_encoder or not knows:
            _, of_encoder = _cross_fitted(fit_encoder, folds, settings)
            is_encoder = _lower_bound((of_bag if knows else of_majority) - of_encoder, settings) > 0
        else:
            of_encoder = None
    gains = of_majority - (of_encoder if is_encoder and of_encoder is not None else of_bag)
    low, high = metrics.bootstrap_interval(gains, settings.bootstrap_samples, settings.seed)
    verdict = Verdict(
        chosen="encoder" if is_encoder else "bag_of_words",
        ahead=gains.mean().item(),
        low=low,
        high=high,
        mails=len(gains),
        behind_bag=None if of_encoder is None else (of_encoder - of_bag).mean().item(),
    )
    return encoder if is_encoder else bag, verdict


def bag_fitter(seed: int, settings: dict) -> FitModel:
    """Return what fits a bag of words to training and validation mails."""

    def fit(train: Mails, valid: Mails) -> BagOfWords:
        return BagOfWords.fit(train, valid, seed, **settings)

    return fit


def _folds(mails: Mails, similarity: float, settings: ChoiceSettings) -> list[Mails]:
    """Split mails into folds with like shares of outcomes; near-duplicates share a fold."""
    groups = splitting.near_duplicate_groups(mails.texts, similarity)
    shares = {str(fold): 1 / settings.folds for fold in range(settings.folds)}
    rows = splitting.stratified_split(mails, groups, shares, settings.seed).values()
    return [mails.rows(fold) for fold in rows if fold]


def _cross_fitted(fit: FitModel, folds: list[Mails], settings: ChoiceSettings) -> tuple[Tensor, Tensor]:
    """Return the log-losses of the majority and of a model [N], each of a mail that the model has not seen.

    A model trains on all folds but two: the mail's, and the one that chooses its weights and temperature. That few
    mails choose too sure a temperature, so a part `majority_share` of the model's probabilities is the majority's.
    """
    of_majority, of_model = [], []
    for i, held_out in enumerate(folds):
        chooses = (i + 1) % len(folds)
        first, *others = [fold for j, fold in enumerate(folds) if j not in (i, chooses)]
        train = sum(others, first)
        shares = _shares(train, held_out)
        p = fit(train, folds[chooses]).probabilities(held_out.contexts, held_out.texts).double()
        mixed = (1 - settings.majority_share) * p + settings.majority_share * shares
        of_majority.append(metrics.log_losses(shares, held_out.outcome))
        of_model.append(metrics.log_losses(mixed, held_out.outcome))
    return torch.cat(of_majority), torch.cat(of_model)


def _log_losses(model: OutcomeModel, mails: Mails) -> Tensor:
    return metrics.log_losses(model.probabilities(mails.contexts, mails.texts), mails.outcome)


def _shares(train: Mails, mails: Mails) -> Tensor:
    """Return the training mails' shares of outcomes for each of `mails` [N, K]; one mail is added to each outcome's."""
    counts = torch.bincount(train.outcome, minlength=len(OUTCOMES)).double() + 1
    return (counts / counts.sum()).expand(len(mails), len(OUTCOMES))


def _lower_bound(gain: Tensor, settings: ChoiceSettings) -> float:
    """Return the lower end of the 95 % interval of a mean of paired differences [N]."""
    return metrics.bootstrap_interval(gain, settings.bootstrap_samples, settings.seed)[0]

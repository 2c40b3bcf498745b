"""Which model of outcomes may be a reward: an encoder, a bag of words where that knows as much, or none.

A reward model that knows nothing more than the majority's shares gives every mail the same reward up to noise, and a
policy would be trained on that noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from email_rl.data import metrics, splitting
from email_rl.data.mails import OUTCOMES, Mails
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.outcome_model import OutcomeModel, OutcomePredictor

FitModel = Callable[[Mails, Mails], OutcomeModel]  # of training and validation mails
GroupMails = Callable[[Mails], list[int]]  # numbers the groups of mails that no split may part
LEAST_FOLDS = 3  # of cross-fitting: for training, for choosing weights, and held out


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
    the few validation mails, and was not fitted again. `bag_knows` tells whether the bag of words is ahead of the
    majority by more than chance; if not, the encoder is compared with the majority. `majority_share` is the part of the
    judged probabilities that is the majority's: 0 where validation mails are many.
    """

    chosen: str
    ahead: float
    low: float
    high: float
    mails: int
    behind_bag: float | None
    bag_knows: bool
    majority_share: float

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
        gap = "" if self.behind_bag is None else f", by {-self.behind_bag:+.3f} nats a mail"
        if self.chosen == "bag_of_words":
            why = f"the encoder is not ahead of it{gap}"
        elif self.bag_knows:
            why = f"ahead of the bag of words{gap}"
        else:
            why = "the bag of words is not ahead of the majority"
        return (
            f"{name} ({why}); ahead of the majority by {self.ahead:.3f} nats a mail ({self.low:.3f} to "
            f"{self.high:.3f}) on {self.mails:,} mails that it has not learnt from"
        )


class HeldOutLosses(NamedTuple):
    """Log-losses of the same mails, which no model has learnt from, nats [N]."""

    majority: Tensor
    bag: Tensor
    encoder: Tensor | None  # None: it was not fitted again


class Fitters(NamedTuple):
    """What fits models to training and validation mails."""

    encoder: FitModel
    bag: FitModel  # a bag of words, whose training the validation mails stop
    bag_of_few: FitModel  # a bag of words that learns from training and validation mails alike


def choose_reward_model(
    encoder: OutcomeModel,
    fit: Fitters,
    train: Mails,
    valid: Mails,
    group: GroupMails,
    settings: ChoiceSettings,
) -> tuple[OutcomeModel, Verdict]:
    """Return the encoder if it is ahead of a bag of words on the validation mails by more than chance, else the bag.

    A bag of words that is not ahead of the majority knows nothing; then the encoder must be ahead of the majority.
    Where validation mails are few, both are compared with each other and with the majority by cross-fitting over
    training and validation mails: training has chosen its weights by the few, and the more weights there are to choose
    from, the more that flatters them. The bag of words then learns from training and validation mails alike.
    """
    bag = fit.bag(train, valid)
    losses = HeldOutLosses(_majority_losses(train, valid), _log_losses(bag, valid), _log_losses(encoder, valid))
    are_few = len(valid) < settings.few_mails
    if are_few:
        losses = _cross_fitted_losses(losses, fit, _folds(train + valid, group, settings), settings)
        bag = fit.bag_of_few(train, valid)
    bag_knows = _is_ahead(losses.bag, losses.majority, settings)
    is_encoder = _is_ahead(losses.encoder, losses.bag if bag_knows else losses.majority, settings)
    gains = losses.majority - (losses.encoder if is_encoder and losses.encoder is not None else losses.bag)
    low, high = metrics.bootstrap_interval(gains, settings.bootstrap_samples, settings.seed)
    verdict = Verdict(
        chosen="encoder" if is_encoder else "bag_of_words",
        ahead=gains.mean().item(),
        low=low,
        high=high,
        mails=len(gains),
        behind_bag=None if losses.encoder is None else (losses.encoder - losses.bag).mean().item(),
        bag_knows=bag_knows,
        majority_share=settings.majority_share if are_few else 0.0,
    )
    return encoder if is_encoder else bag, verdict


def gain_over_majority(
    model: OutcomePredictor, train: Mails, valid: Mails, settings: ChoiceSettings
) -> tuple[float, float, float]:
    """Return the majority's log-loss less a model's on validation mails, nats a mail, and its 95 % interval."""
    gains = _majority_losses(train, valid) - _log_losses(model, valid)
    return gains.mean().item(), *metrics.bootstrap_interval(gains, settings.bootstrap_samples, settings.seed)


def bag_fitters(
    seed: int, bag_settings: dict, group: GroupMails, settings: ChoiceSettings
) -> tuple[FitModel, FitModel]:
    """Return what fits a bag of words, and what fits one to few mails: `Fitters.bag` and `Fitters.bag_of_few`."""

    def fit(train: Mails, valid: Mails) -> BagOfWords:
        return BagOfWords.fit(train, valid, seed, **bag_settings)

    def fit_few(train: Mails, valid: Mails) -> BagOfWords:
        mails = train + valid
        return BagOfWords.fit_all(mails, _fold_rows(mails, group, settings), seed, **bag_settings)

    return fit, fit_few


class WithMajority:
    """A model whose probabilities are mixed with the shares of its training mails' outcomes.

    A verdict over few mails is of such a mixture, because few mails choose too sure a temperature.
    """

    def __init__(self, model: OutcomeModel, train: Mails, majority_share: float):
        self.model, self.train, self.majority_share = model, train, majority_share

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3]."""
        p = self.model.probabilities(contexts, texts).double()
        return (1 - self.majority_share) * p + self.majority_share * majority_shares(self.train, len(texts))


def _folds(mails: Mails, group: GroupMails, settings: ChoiceSettings) -> list[Mails]:
    """Split mails into folds with like shares of outcomes; a group shares a fold."""
    folds = [mails.rows(fold) for fold in _fold_rows(mails, group, settings)]
    if len(folds) < LEAST_FOLDS:
        raise ValueError(
            f"env.data: {len(mails)} mails make {len(folds)} groups of near-duplicates; expected {LEAST_FOLDS} or more "
            "to compare models by cross-fitting"
        )
    return folds


def _fold_rows(mails: Mails, group: GroupMails, settings: ChoiceSettings) -> list[list[int]]:
    """Return the rows of each fold that has any."""
    shares = {str(fold): 1 / settings.folds for fold in range(settings.folds)}
    return [rows for rows in splitting.stratified_split(mails, group(mails), shares, settings.seed).values() if rows]


def _cross_fitted_losses(
    on_valid: HeldOutLosses, fit: Fitters, folds: list[Mails], settings: ChoiceSettings
) -> HeldOutLosses:
    """Return the log-losses of all mails of the folds by cross-fitting, given those of the validation mails.

    The encoder is fitted again only where it seems ahead on validation mails, or where the bag of words knows nothing.
    """
    of_majority, of_bag = _cross_fitted(fit.bag_of_few, folds, settings)
    seems_ahead = _is_ahead(on_valid.encoder, on_valid.bag, settings)
    is_asked = seems_ahead or not _is_ahead(of_bag, of_majority, settings)
    return HeldOutLosses(of_majority, of_bag, _cross_fitted(fit.encoder, folds, settings)[1] if is_asked else None)


def _cross_fitted(fit: FitModel, folds: list[Mails], settings: ChoiceSettings) -> tuple[Tensor, Tensor]:
    """Return the log-losses of the majority and of a model [N], each of a mail that the model has not seen.

    A model trains on all folds but the mail's; one of these is its validation mails. That few mails choose
    too sure a temperature, so a part `majority_share` of the model's probabilities is the majority's.
    """
    of_majority, of_model = [], []
    for i, held_out in enumerate(folds):
        chooses = (i + 1) % len(folds)
        first, *others = [fold for j, fold in enumerate(folds) if j not in (i, chooses)]
        train = sum(others, first)
        model = WithMajority(fit(train, folds[chooses]), train, settings.majority_share)
        of_majority.append(_majority_losses(train, held_out))
        of_model.append(_log_losses(model, held_out))
    return torch.cat(of_majority), torch.cat(of_model)


def _log_losses(model: OutcomePredictor, mails: Mails) -> Tensor:
    return metrics.log_losses(model.probabilities(mails.contexts, mails.texts), mails.outcome)


def _majority_losses(train: Mails, mails: Mails) -> Tensor:
    return metrics.log_losses(majority_shares(train, len(mails)), mails.outcome)


def majority_shares(train: Mails, n: int) -> Tensor:
    """Return the training mails' shares of outcomes for each of n mails [n, K]; one mail is added to each outcome's."""
    counts = torch.bincount(train.outcome, minlength=len(OUTCOMES)).double() + 1
    return (counts / counts.sum()).expand(n, len(OUTCOMES))


def _is_ahead(loss: Tensor | None, other: Tensor, settings: ChoiceSettings) -> bool:
    """Tell whether one model's log-losses [N] are below another's by more than chance: the paired 95 % interval."""
    return (
        loss is not None and metrics.bootstrap_interval(other - loss, settings.bootstrap_samples, settings.seed)[0] > 0
    )

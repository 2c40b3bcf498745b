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
from email_rl.data.dataset import MailDataset
from email_rl.data.mails import Mails
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.outcome_model import OutcomeModel, OutcomePredictor
from email_rl.reward_model.baselines import OfContext, WithMajority, without_texts
from email_rl.reward_model.gains import Gain, Gains

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

    `ahead` is the majority's log-loss less the model's, nats a mail, with its 95 % interval `low` to `high`;
    `ahead_of_context`, `context_low` and `context_high` are the same beside a model that reads the context alone, and
    `context_is_rival` tells whether the model reads the context, and that one is ahead of the majority by more than
    chance.
    `behind_bag` is the encoder's log-loss less the bag of words' on the same mails; None: the encoder was not ahead on
    the few validation mails, and was not fitted again. `bag_knows` tells whether the bag of words is ahead of the
    majority by more than chance; if not, the encoder is compared with the majority. `majority_share` is the part of the
    judged probabilities that is the majority's: 0 where validation mails are many.
    """

    chosen: str
    ahead: float
    low: float
    high: float
    ahead_of_context: float
    context_low: float
    context_high: float
    context_is_rival: bool
    mails: int
    behind_bag: float | None
    bag_knows: bool
    majority_share: float

    @property
    def is_informed(self) -> bool:
        """Whether the model is ahead of the majority, and of the context where that is a rival, by more than chance."""
        return self.gains.are_sure

    @property
    def gains(self) -> Gains:
        """How far the model is ahead of the majority, and of the context alone."""
        over_context = Gain(self.ahead_of_context, self.context_low, self.context_high)
        return Gains(Gain(self.ahead, self.low, self.high), over_context, self.context_is_rival)

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
        return f"{name} ({why}); ahead {self.gains} on {self.mails:,} mails that it has not learnt from"


class HeldOutLosses(NamedTuple):
    """Log-losses of the same mails, which no model has learnt from, nats [N], and the numbers of the mails' groups."""

    groups: list[int]
    majority: Tensor
    context: Tensor  # of a bag of words that reads the context alone
    bag: Tensor
    encoder: Tensor | None  # None: it was not fitted again


class Fitters(NamedTuple):
    """What fits models to training and validation mails."""

    encoder: FitModel
    bag: FitModel  # a bag of words, whose training the validation mails stop
    bag_of_few: FitModel  # a bag of words that learns from training and validation mails alike
    context: Callable[[Mails, Mails], OutcomePredictor]  # as `bag`, but it reads the context alone
    context_of_few: Callable[[Mails, Mails], OutcomePredictor]  # as `bag_of_few`


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
    of_context, of_bag, of_encoder = (_log_losses(model, valid) for model in (fit.context(train, valid), bag, encoder))
    losses = HeldOutLosses(group(valid), _majority_losses(train, valid), of_context, of_bag, of_encoder)
    are_few = len(valid) < settings.few_mails
    if are_few:
        losses = _cross_fitted_losses(losses, fit, _folds(train + valid, group, settings), group, settings)
        bag = fit.bag_of_few(train, valid)
    bag_knows = _is_ahead(losses.bag, losses.majority, losses.groups, settings)
    rival = losses.bag if bag_knows else losses.majority
    is_encoder = losses.encoder is not None and _is_ahead(losses.encoder, rival, losses.groups, settings)
    chosen = losses.encoder if is_encoder and losses.encoder is not None else losses.bag
    model = encoder if is_encoder else bag
    found = _gains(chosen, losses.majority, losses.context, losses.groups, settings, model.reads_context)
    verdict = Verdict(
        chosen="encoder" if is_encoder else "bag_of_words",
        **found.to_dict(),
        mails=len(chosen),
        behind_bag=None if losses.encoder is None else (losses.encoder - losses.bag).mean().item(),
        bag_knows=bag_knows,
        majority_share=settings.majority_share if are_few else 0.0,
    )
    return model, verdict


def gains(model: OutcomePredictor, dataset: MailDataset, mails: Mails, seed: int, settings: ChoiceSettings) -> Gains:
    """Return how far a model is ahead of the majority, and of the context alone, on mails that it was not fitted to.

    Both of these learn from the dataset's training mails.
    """
    of_context = OfContext.fit(dataset.train, dataset.valid, seed, dataset.bag_of_words)
    losses = (_log_losses(model, mails), _majority_losses(dataset.train, mails), _log_losses(of_context, mails))
    return _gains(*losses, dataset.groups(mails), settings, model.reads_context)


def fitters(encoder: FitModel, seed: int, bag_settings: dict, group: GroupMails, settings: ChoiceSettings) -> Fitters:
    """Return what fits models: `encoder`, and bags of words."""

    def bag(train: Mails, valid: Mails) -> BagOfWords:
        return BagOfWords.fit(train, valid, seed, **bag_settings)

    def bag_of_few(train: Mails, valid: Mails) -> BagOfWords:
        mails = train + valid
        return BagOfWords.fit_all(mails, _fold_rows(mails, group, settings), seed, **bag_settings)

    def context(train: Mails, valid: Mails) -> OfContext:
        return OfContext.fit(train, valid, seed, bag_settings)

    def context_of_few(train: Mails, valid: Mails) -> OfContext:
        mails = train + valid
        folds = _fold_rows(mails, group, settings)
        return OfContext(BagOfWords.fit_all(without_texts(mails), folds, seed, **bag_settings))

    return Fitters(encoder, bag, bag_of_few, context, context_of_few)


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
    on_valid: HeldOutLosses, fit: Fitters, folds: list[Mails], group: GroupMails, settings: ChoiceSettings
) -> HeldOutLosses:
    """Return the log-losses of all mails of the folds by cross-fitting, given those of the validation mails.

    The encoder is fitted again only where it seems ahead on validation mails, or where the bag of words knows nothing.
    """
    assert on_valid.encoder is not None
    groups = group(sum(folds[1:], folds[0]))
    of_majority, of_bag = _cross_fitted(fit.bag_of_few, folds, settings)
    of_context = _cross_fitted(fit.context_of_few, folds, settings)[1]
    seems_ahead = _is_ahead(on_valid.encoder, on_valid.bag, on_valid.groups, settings)
    is_asked = seems_ahead or not _is_ahead(of_bag, of_majority, groups, settings)
    of_encoder = _cross_fitted(fit.encoder, folds, settings)[1] if is_asked else None
    return HeldOutLosses(groups, of_majority, of_context, of_bag, of_encoder)


def _cross_fitted(
    fit: Callable[[Mails, Mails], OutcomePredictor], folds: list[Mails], settings: ChoiceSettings
) -> tuple[Tensor, Tensor]:
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
    return metrics.log_losses(metrics.majority_shares(train, len(mails)), mails.outcome)


def _gains(
    loss: Tensor, majority: Tensor, context: Tensor, groups: list[int], settings: ChoiceSettings, reads_context: bool
) -> Gains:
    """Return how far a model's log-losses [N] are below the majority's, and below those of the context alone."""
    is_rival = reads_context and _is_ahead(context, majority, groups, settings)
    return Gains(_gain(loss, majority, groups, settings), _gain(loss, context, groups, settings), is_rival)


def _gain(loss: Tensor, other: Tensor, groups: list[int], settings: ChoiceSettings) -> Gain:
    """Return how far one model's log-losses [N] are below another's: the paired bootstrap over groups of mails."""
    interval = metrics.bootstrap_interval(other - loss, settings.bootstrap_samples, settings.seed, groups)
    return Gain((other - loss).mean().item(), *interval)


def _is_ahead(loss: Tensor, other: Tensor, groups: list[int], settings: ChoiceSettings) -> bool:
    """Tell whether one model's log-losses [N] are below another's by more than chance."""
    return _gain(loss, other, groups, settings).low > 0

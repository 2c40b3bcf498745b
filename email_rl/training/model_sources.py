"""Where the models of PPO come from: a given folder, the cache of earlier runs, or training now."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from email_rl.data.dataset import JUDGE, SPLITS, MailDataset
from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import Mails
from email_rl.models.hf_io import from_folder
from email_rl.models.language_models import read_language_model
from email_rl.models.outcome_classifier import REWARD_MODEL_FOLDER, OutcomeClassifier
from email_rl.models.outcome_model import OutcomeModel, OutcomePredictor, export_outcome_model, load_outcome_model
from email_rl.models.policy import LanguageModelPolicy
from email_rl.models.sampling_check import check_sampling
from email_rl.reward_model.baselines import WithMajority
from email_rl.reward_model.reward_choice import (
    ChoiceSettings,
    Verdict,
    choose_reward_model,
    fitters,
    gains,
)
from email_rl.reward_model.reward_model import RewardModel
from email_rl.training.sft import POLICY_FOLDER, SFT
from email_rl.training.sft_mails import policy_settings
from rlcore.algorithm import Algorithm
from rlcore.backends import distributed
from rlcore.runs import checkpoint
from rlcore.runs.logger import Logger, NullLogger
from rlcore.training_loop import TrainingLoop

CHECKED_CONTEXTS = 2  # for which the language model writes a mail each, to be checked
VERDICT = "choice.json"  # in the folder of a reward model: why it was chosen
HELP = (
    "more mails with outcomes, an encoder with pretrained weights (algo/encoder=minilm), or a classifier of your own "
    "(algo.reward_model_folder=FOLDER)"
)
Accelerate = Callable[[Algorithm], Algorithm]  # applies the performance mode of the outer algorithm


@dataclass(frozen=True)
class ModelSources:
    """Reward model, reference policy and judge for one dataset of mails.

    Models without a given folder are trained: the reward model from `encoder` with the settings
    `reward_model_training` (a bag of words may take its place, by `choice`), the reference policy from `language_model`
    with the settings `sft`. Both are kept in the folder `model_cache` for other runs with the same mails, settings and
    seed. Raises ValueError where a given folder holds no such model, and where no reward model knows anything.
    """

    dataset: MailDataset
    seed: int
    language_model: Any
    encoder: Any
    generation: dict
    sft: dict
    reward_model_training: dict
    choice: ChoiceSettings
    reward_model_folder: str | None
    reference_folder: str | None
    model_cache: str
    batch_size: int

    def load_or_train(
        self, logger: Logger, should_stop: Callable[[], bool], accelerate: Accelerate
    ) -> tuple[LanguageModelPolicy, OutcomeModel]:
        """Return reference policy and reward model, on the dataset's device; the first process trains for all."""
        if self.dataset.gold is None:
            self.dataset.judge_dataset()  # a dataset without mails for a judge is refused before anything trains
        # what is given is read before anything trains, so that a folder without a model costs no minutes
        if self.encoder.learnt:
            self._check_unread(self.encoder.learnt, f"algo.encoder.source.path: {self.encoder.source.path}")
        reward_model = self._given_reward_model() if self.reward_model_folder else None
        reference = self._read_reference(self.reference_folder) if self.reference_folder else None
        with distributed.rank_zero_first():
            informed = None if reward_model else self._informed_reward_model(logger, should_stop, accelerate)
            trained = None if reference else self._train_reference(logger, should_stop, accelerate)
        if informed:
            reward_model = load_outcome_model(informed, self.dataset.device, self.batch_size)
        if trained:
            reference = self._read_reference(trained)
        assert reward_model is not None and reference is not None
        check_sampling(reference, self.dataset.train.contexts[:CHECKED_CONTEXTS])
        return reference, reward_model

    def _read_reference(self, folder: Path | str) -> LanguageModelPolicy:
        """Read a reference policy from its folder."""
        network, tokenizer = from_folder(
            str(folder), "algo.reference_folder", read_language_model, "causal language model"
        )
        self._check_template(network.config.to_dict().get("prompt_template"))
        settings = policy_settings(self.generation, network, tokenizer, self.dataset)
        return LanguageModelPolicy(network, tokenizer, **settings).to(self.dataset.device)

    def _given_reward_model(self) -> OutcomeModel:
        """Read the reward model of `reward_model_folder`, and report what it knows."""
        assert self.reward_model_folder
        reward_model = load_outcome_model(self.reward_model_folder, self.dataset.device, self.batch_size)
        self._check_unread(reward_model.learnt, f"algo.reward_model_folder: {self.reward_model_folder}")
        if distributed.rank() == 0:
            self._report_left_out(reward_model.learnt)
            self._report_given(reward_model)
        return reward_model

    def _check_unread(self, learnt: LearntMails | None, where: str) -> None:
        """Raise ValueError where a given model has read nearly all mails that judge it, or judge the policy.

        `where` is its key and folder.
        """
        for side in ("test",) if self.dataset.gold else ("test", JUDGE):
            whole, left = len(self.dataset.splits[side]), len(self.dataset.unread(side, learnt))
            least = min(whole, self.dataset.min_rows)
            if left < least:
                raise ValueError(
                    f"{where}: has learnt from {whole - left:,} of the {whole:,} mails of split {side}; expected "
                    f"{least} others: give the run of this model and this run the same env.split.shares and "
                    "env.split.seed"
                )

    def _report_left_out(self, learnt: LearntMails | None) -> None:
        """Print how many mails can't judge because a given reward model has read them."""
        for side in ("test",) if self.dataset.gold else ("test", JUDGE):
            whole, left = len(self.dataset.splits[side]), len(self.dataset.unread(side, learnt))
            if left < whole:
                print(
                    f"{side}: {whole - left:,} of {whole:,} mails are left out: {REWARD_MODEL_FOLDER} has learnt from "
                    "them, or from near-duplicates"
                )

    def _informed_reward_model(self, logger: Logger, should_stop: Callable[[], bool], accelerate: Accelerate) -> Path:
        """Return the folder of the reward model; raise ValueError where none is informed."""
        folder, verdict = self._train_reward_model(REWARD_MODEL_FOLDER, self.dataset, logger, should_stop, accelerate)
        if self.choice.must_beat_majority and not verdict.is_informed:
            raise ValueError(
                f"{self.dataset.name}: no reward model is ahead of {verdict.gains.weakest()} on {verdict.mails:,} "
                f"mails; nothing can be optimised against it. What would help: {HELP}"
            )
        return folder

    def _check_template(self, template: str | None) -> None:
        """Raise ValueError where a reference was trained on prompts of another template; None: its folder has none."""
        expected = self.generation["prompt_template"]
        if template not in (None, expected):
            raise ValueError(
                f"algo.generation.prompt_template: expected {template!r}, the prompt_template in config.json of "
                f"algo.reference_folder, got {expected!r}"
            )

    def _report_given(self, reward_model: OutcomeModel) -> None:
        """Print how far a given reward model is ahead of the majority on validation mails, and warn where it is not.

        These are mails that it was not fitted to; a folder that does not say which these are is taken to know none.
        """
        valid, n = self.dataset.unread("valid", reward_model.learnt, fitted_only=True), len(self.dataset.valid)
        if len(valid) < min(n, self.dataset.min_rows):
            print(
                f"warning: algo.reward_model_folder: {self.reward_model_folder}: has learnt from {n - len(valid):,} of "
                f"the {n:,} validation mails: the others are too few to tell how far it is ahead of the majority",
                file=sys.stderr,
            )
            return
        if reward_model.learnt is None:
            print(
                f"{REWARD_MODEL_FOLDER}: {self.reward_model_folder}: its folder does not say which mails it has learnt "
                "from: what follows, and the judge, hold if these are none of this file's"
            )
        found = gains(reward_model, self.dataset, valid, self.seed, self.choice)
        on = f"on {len(valid):,} validation mails"
        if found.are_sure:
            print(f"{REWARD_MODEL_FOLDER}: {self.reward_model_folder}: ahead {found} {on}")
        else:
            print(
                f"warning: algo.reward_model_folder: {self.reward_model_folder}: by more than chance it is not ahead "
                f"of {found.weakest()} {on}: a policy may be optimised against noise",
                file=sys.stderr,
            )

    def judge(self, accelerate: Accelerate, learnt: LearntMails | None) -> OutcomePredictor:
        """Return a judge for mails without a gold model: a reward model on mails that no other model has seen.

        Mails of the split `judge` that the reward model knows (`learnt`), or an encoder's first weights, are left out.

        Where these mails are few the judge is the mixture with the majority that its verdict is of. The judge itself is
        tried on the mails of all other splits, but for those that the first weights know: it has seen none.
        """
        before = self.encoder.learnt
        dataset = self.dataset.judge_dataset(learnt.joined(before) if learnt else before)
        folder, verdict = self._train_reward_model(JUDGE, dataset, NullLogger(), lambda: False, accelerate)
        trained = load_outcome_model(folder, self.dataset.device, self.batch_size)
        share = verdict.majority_share
        model: OutcomePredictor = WithMajority(trained, dataset.train, share) if share else trained
        others = sum((self.dataset.unread(side, before) for side in SPLITS[1:]), self.dataset.unread(SPLITS[0], before))
        found = gains(model, dataset, others, self.seed, self.choice)
        on = f"on the {len(others):,} mails of the other splits"
        if found.are_sure:
            print(f"{JUDGE}: ahead {found} {on}")
        else:
            print(
                f"warning: by more than chance the judge is not ahead of {found.weakest()} {on}: what it says of the "
                "policy's mails means little",
                file=sys.stderr,
            )
        return model

    def _train_reward_model(
        self, name: str, dataset: MailDataset, logger: Logger, should_stop: Callable[[], bool], accelerate: Accelerate
    ) -> tuple[Path, Verdict]:
        """Return the folder of an encoder or, where that is not ahead of it, of a bag of words; and why."""
        settings = {"encoder": self.encoder, **self.reward_model_training}

        def fit(mails: MailDataset, log: Logger) -> OutcomeClassifier:
            training = RewardModel(mails, self.seed, **settings)
            self._run(training, name, log, should_stop, accelerate)
            return training.classifier

        def fit_again(train: Mails, valid: Mails) -> OutcomeClassifier:
            return fit(dataset.with_splits({"train": train, "valid": valid, "test": valid}), NullLogger())

        def make(folder: Path) -> None:
            model, verdict = choose_reward_model(
                fit(dataset, logger),
                fitters(fit_again, self.seed, dataset.bag_of_words, dataset.groups, self.choice),
                dataset.train,
                dataset.valid,
                dataset.groups,
                self.choice,
            )
            export_outcome_model(model, folder)
            checkpoint.save_json(folder / VERDICT, verdict.to_dict())

        layout = [field.name for field in fields(Verdict)]
        recipe = (settings, dataset.bag_of_words, dataset.grouping, self.choice, layout, dataset.digest, self.seed)
        folder = self._cached(name, recipe, make)
        verdict = Verdict(**json.loads((folder / VERDICT).read_text()))
        if distributed.rank() == 0:
            print(f"{name}: {verdict.describe()}")
        return folder, verdict

    def _train_reference(self, logger: Logger, should_stop: Callable[[], bool], accelerate: Accelerate) -> Path:
        """Return the folder of a language model after its warm start."""
        settings = {"language_model": self.language_model, "generation": self.generation, **self.sft}

        def make(folder: Path) -> None:
            training = SFT(self.dataset, self.seed, **settings)
            self._run(training, POLICY_FOLDER, logger, should_stop, accelerate)
            training.export_model(folder)

        return self._cached(POLICY_FOLDER, (settings, self.dataset.digest, self.seed), make)

    def _run(
        self,
        algorithm: RewardModel | SFT,
        name: str,
        logger: Logger,
        should_stop: Callable[[], bool],
        accelerate: Accelerate,
    ) -> None:
        """Train to the end; a half-trained model is not kept."""
        accelerate(algorithm)
        with logger.child(name, algorithm.iterations) as child:
            TrainingLoop(algorithm, child, validate=algorithm.validate, should_stop=should_stop).run()
        if should_stop():
            raise KeyboardInterrupt

    def _cached(self, name: str, recipe: object, make: Callable[[Path], None]) -> Path:
        """Return the folder of a model trained by this recipe, now or before."""
        folder, known = cached(self.model_cache, name, recipe, make)
        if distributed.rank() == 0:
            print(f"{name}: {folder}{' (trained before)' if known else ''}")
        return folder


def cached(root: Path | str, name: str, recipe: object, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """Return the folder of `name` and a recipe (by its repr) under `root`, and whether it was there.

    Where it was not there, `make` fills it first.
    """
    folder = Path(root) / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    known = folder.is_dir()
    if not known:
        folder.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.atomic_folder(folder, make)
    return folder, known

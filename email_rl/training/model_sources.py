"""Where the models of PPO come from: a given folder, the cache of earlier runs, or training now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from email_rl.data.dataset import MailDataset
from email_rl.models.hf_io import from_folder
from email_rl.models.language_models import read_language_model
from email_rl.models.outcome_classifier import REWARD_MODEL_FOLDER, OutcomeClassifier
from email_rl.models.policy import LanguageModelPolicy
from email_rl.training.reward_model import RewardModel
from email_rl.training.sft import POLICY_FOLDER, SFT
from rlcore import checkpoint
from rlcore.algorithm import Algorithm
from rlcore.backends import distributed
from rlcore.logger import Logger, NullLogger
from rlcore.training_loop import TrainingLoop

Accelerate = Callable[[Algorithm], Algorithm]  # applies the performance mode of the outer algorithm


class ModelSources:
    """Reward model, reference policy and judge for one dataset of mails.

    Models without a given folder are trained: the reward model from `encoder` with the settings
    `reward_model_training`, the reference policy from `language_model` with the settings `sft`. Both are kept in the
    folder `model_cache` for other runs with the same mails, settings and seed. Raises ValueError where a given folder
    holds no such model.
    """

    def __init__(
        self,
        dataset: MailDataset,
        seed: int,
        *,
        language_model,
        encoder,
        generation: dict,
        sft: dict,
        reward_model_training: dict,
        reward_model_folder: str | None,
        reference_folder: str | None,
        model_cache: str,
        batch_size: int,
    ):
        self.dataset, self.seed = dataset, seed
        self.language_model, self.encoder, self.generation = language_model, encoder, generation
        self.sft, self.reward_model_training = sft, reward_model_training
        self.reward_model_folder, self.reference_folder = reward_model_folder, reference_folder
        self.model_cache, self.batch_size = model_cache, batch_size

    def load_or_train(
        self, logger: Logger, should_stop: Callable[[], bool], accelerate: Accelerate
    ) -> tuple[LanguageModelPolicy, OutcomeClassifier]:
        """Return reference policy and reward model, on the dataset's device; the first process trains for all."""
        with distributed.rank_zero_first():
            reward_model_folder = self.reward_model_folder or self._train_reward_model(
                REWARD_MODEL_FOLDER, self.dataset, logger, should_stop, accelerate
            )
            reference_folder = self.reference_folder or self._train(
                POLICY_FOLDER,
                SFT,
                self.dataset,
                logger,
                should_stop,
                accelerate,
                language_model=self.language_model,
                generation=self.generation,
                **self.sft,
            )
        reward_model = OutcomeClassifier.load(reward_model_folder, self.dataset.device, self.batch_size)
        network, tokenizer = from_folder(
            str(reference_folder), "algo.reference_folder", read_language_model, "causal language model"
        )
        reference = LanguageModelPolicy(network, tokenizer, **self.generation)
        return reference.to(self.dataset.device), reward_model

    def judge(self, accelerate: Accelerate) -> OutcomeClassifier:
        """Return a judge for mails without a gold model: a reward model on mails that no other model has seen."""
        folder = self._train_reward_model(
            "judge", self.dataset.judge_dataset(), NullLogger(), lambda: False, accelerate
        )
        return OutcomeClassifier.load(folder, self.dataset.device, self.batch_size)

    def _train_reward_model(
        self, name: str, dataset: MailDataset, logger: Logger, should_stop: Callable[[], bool], accelerate: Accelerate
    ) -> Path:
        return self._train(
            name,
            RewardModel,
            dataset,
            logger,
            should_stop,
            accelerate,
            encoder=self.encoder,
            **self.reward_model_training,
        )

    def _train(
        self,
        name: str,
        kind: Callable[..., RewardModel | SFT],
        dataset: MailDataset,
        logger: Logger,
        should_stop: Callable[[], bool],
        accelerate: Accelerate,
        **settings,
    ) -> Path:
        """Return the folder of a model trained with these settings on these mails, now or before."""

        def make(folder: Path) -> None:
            algorithm = kind(dataset, self.seed, **settings)
            accelerate(algorithm)
            with logger.child(name, algorithm.iterations) as child:
                TrainingLoop(algorithm, child, validate=algorithm.validate, should_stop=should_stop).run()
            if should_stop():  # a half-trained model is not kept
                raise KeyboardInterrupt
            algorithm.export_model(folder)

        folder, known = cached(self.model_cache, name, (settings, dataset.digest, self.seed), make)
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

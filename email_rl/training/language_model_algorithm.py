"""The half of PPO on mails that is not about losses: models, optimiser, state."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from email_rl.data.dataset import MailDataset
from email_rl.mail_algorithm import MailAlgorithm
from email_rl.models.outcome_classifier import REWARD_MODEL_FOLDER, outcome_reward
from email_rl.models.outcome_model import (
    OutcomeModel,
    OutcomePredictor,
    cut_mails,
    export_outcome_model,
    pack_outcome_model,
    unpack_outcome_model,
)
from email_rl.models.policy import LanguageModelPolicy
from email_rl.reward_model.reward_choice import ChoiceSettings
from email_rl.training.diagnostics import length_figure, sample_table
from email_rl.training.guards import GuardLimits, Guards
from email_rl.training.model_sources import HELP, ModelSources
from email_rl.training.rollout import MailRollout
from email_rl.training.sft import POLICY_FOLDER
from rlcore.backends import distributed
from rlcore.runs import checkpoint
from rlcore.runs.logger import Logger, NullLogger
from rlcore.schedules import restore_optimizer

EXAMPLES = 8  # contexts of a checkpoint


class LanguageModelAlgorithm(MailAlgorithm):
    """A policy that starts as a copy of a reference policy, and the reward model that scores its mails.

    Its subclass LanguageModelPPO learns. `ModelSources` says where the models come from. A mail's reward is the
    expected value of its outcome (`expected`) or the value of its likeliest outcome (`argmax`). `score_mean` and
    `score_std` are the mean and standard deviation of rewards of mails that the reference generated; they are in every
    checkpoint. `setup` raises ValueError where the standard deviation, or that of rewards of texts in one context, is
    below `min_reward_spread`.
    """

    start_instead = "algo.reference_folder=FOLDER (the folder `policy` of a run) starts from its policy"
    policy: LanguageModelPolicy  #: set by `set_models`, as are the other two
    reference: LanguageModelPolicy
    reward_model: OutcomeModel
    samples_per_context: (
        int  #: mails that a rollout has of each sampled context, one after the other; set by the subclass
    )
    settings: dict[str, Any]  #: the arguments for another algorithm of the same class; set by the subclass

    def __init__(
        self,
        env: MailDataset,
        seed: int,
        *,
        language_model: Any,
        encoder: Any,
        generation: dict,
        sft: dict,
        reward_model_training: dict,
        reward_model_choice: dict,
        reward_model_folder: str | None,
        reference_folder: str | None,
        model_cache: str,
        optimizer: Callable,
        kl_controller: Callable,
        lr_schedule: Callable | None,
        gradient_checkpointing: bool,
        inference_batch_size: int,
        guards: dict,
        reward: str,
        normalization_mails: int,
        min_reward_spread: float,
        log_samples_every: int,
        logged_samples: int,
    ):
        if reward not in ("expected", "argmax"):
            raise ValueError(f"algo.reward: expected 'expected' or 'argmax', got '{reward}'")
        self.sources = ModelSources(
            dataset=env,
            seed=seed,
            language_model=language_model,
            encoder=encoder,
            generation=generation,
            sft=sft,
            reward_model_training=reward_model_training,
            choice=ChoiceSettings(**reward_model_choice),
            reward_model_folder=reward_model_folder,
            reference_folder=reference_folder,
            model_cache=model_cache,
            batch_size=inference_batch_size,
        )
        self.guards = Guards(GuardLimits(**guards))
        self.log_samples_every, self.logged_samples = log_samples_every, logged_samples
        self.reward_kind = reward
        self.normalization_mails, self.min_reward_spread = normalization_mails, min_reward_spread
        # No top-k or top-p: log-probabilities are those of the full distribution at this temperature.
        self.sampling = {
            "temperature": generation["temperature"],
            "top_k": 0,
            "top_p": 1.0,
            "batch_size": inference_batch_size,
        }
        self.env, self.seed, self.device = env, seed, env.device
        self.generation, self.inference_batch_size = generation, inference_batch_size
        self.make_optimizer, self.lr_schedule = optimizer, lr_schedule
        self.kl_controller = kl_controller(env.device)
        self.initial_lr = language_model.lr
        self.lr = torch.tensor(float(self.initial_lr), device=env.device)
        self.gradient_checkpointing = gradient_checkpointing
        self.iteration = 0
        self.logger: Logger = NullLogger()
        self.generator = torch.Generator(env.device).manual_seed(2 * distributed.rank_seed(seed) + 1)
        # KL(π_old ‖ π) of the last update, nats a token
        self.update_kl = torch.full((), torch.nan, device=env.device)
        # Of the last generated mails, nats a mail; the evaluation trains a baseline until the baseline has this KL.
        self.kl_to_reference = torch.full((), torch.nan, device=env.device)
        self.has_models = False
        self.score_mean, self.score_std = 0.0, 1.0
        # A backend may put a function here that makes a model generate faster.
        self.prepare_model: Callable[[LanguageModelPolicy], None] = lambda model: None

    def set_models(self, reference: LanguageModelPolicy, reward_model: OutcomeModel) -> None:
        """Set the reference, from which the policy starts, and the reward model."""
        self.prepare_model(reference)
        self.reference, self.reward_model = reference.requires_grad_(False), reward_model
        self.policy = copy.deepcopy(reference).requires_grad_(True)
        if self.gradient_checkpointing:
            self.policy.language_model.gradient_checkpointing_enable()
        self.optimizer = self.make_optimizer(self.policy.parameters(), lr=self.initial_lr)
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.has_models = True

    def setup(self, logger: Logger, should_stop: Callable[[], bool]) -> None:
        """Load or train reference policy and reward model; fit score_mean and score_std on mails of the reference."""
        self.logger = logger
        if self.has_models:  # of a checkpoint, or set by `baseline_trainer`
            return
        self.set_models(*self.sources.load_or_train(logger, should_stop, self.accelerate_inner))
        contexts = self.sample_contexts(self.normalization_mails)
        _, texts = self.reference.generate(contexts, 1, self.generator, **self.sampling)
        rewards = self.rewards(contexts, texts).to(self.device)
        _, mean, variance = distributed.all_reduce_moments(rewards)
        self.score_mean, self.score_std = mean.item(), max(1e-6, variance.sqrt().item())  # in every checkpoint
        self._check_spread(contexts, rewards)
        self._report_cut_mails(contexts, texts)

    def _check_spread(self, contexts: list[str], rewards: Tensor) -> None:
        """Raise ValueError where the rewards of the reference's mails do not differ, or do not within a context.

        The rewards of two mails that the reference writes for one context are a and b: E(a − b)² / 2 is the variance
        within contexts, of half as many. What contexts tell is no part of it, because no policy can change that. Nor is
        what a text would be worth in a context for which the reference never writes it.
        """
        n = -(-len(contexts) // 2)
        # draws of its own, so that training does not depend on this check
        generator = torch.Generator(self.device).manual_seed(2 * distributed.rank_seed(self.seed) + 2)
        _, others = self.reference.generate(contexts[:n], 1, generator, **self.sampling)
        again = self.rewards(contexts[:n], others).to(self.device)
        half_squares = distributed.all_reduce_mean((rewards[:n] - again).square().mean() / 2)
        by_text = half_squares.sqrt().item()
        if distributed.rank() == 0:
            print(
                f"rewards of {len(contexts):,} mails of the reference: standard deviation {self.score_std:.3f}, and "
                f"{by_text:.3f} where the text alone changes"
            )
        if min(self.score_std, by_text) < self.min_reward_spread:
            where = "" if self.score_std < self.min_reward_spread else " where the text alone changes"
            raise ValueError(
                f"algo.min_reward_spread: the rewards of {len(contexts):,} mails of the reference differ by a standard "
                f"deviation of {min(self.score_std, by_text):.4f}, expected at least {self.min_reward_spread}{where}: "
                f"the reward model can't tell them apart; nothing can be optimised against it. What would help: {HELP}"
            )

    def _report_cut_mails(self, contexts: list[str], texts: list[str]) -> None:
        """Print how many mails of the reference are longer than what the reward model reads."""
        cut = cut_mails(self.reward_model, contexts, texts)
        if cut and distributed.rank() == 0:
            print(
                f"warning: {cut:,} of {len(texts):,} mails of the reference are longer than the input of the reward "
                "model, which does not read their ends: a policy may write anything there",
                file=sys.stderr,
            )

    def sample_contexts(self, n: int) -> list[str]:
        """Sample n contexts of training mails, with replacement."""
        contexts = self.env.train.contexts
        rows = torch.randint(len(contexts), (n,), generator=self.generator, device=self.device)
        return [contexts[i] for i in rows.tolist()]

    def rewards(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return the proxy rewards of mails [N], by the reward model, in units of the outcomes' values."""
        p = self.reward_model.probabilities(contexts, texts).double()
        return outcome_reward(p, self.env.outcome_values, self.reward_kind)

    def log_rollout(self, rollout: MailRollout, largest_ratio: float) -> None:
        """Log warnings of a rollout and of the update on it and, every so many iterations, some of its mails."""
        for warning in self.guards.warnings(rollout, largest_ratio):
            self.logger.log_warning(f"iteration {self.iteration + 1}: {warning}")
        if self.iteration % self.log_samples_every == 0:
            self.logger.log_text("samples", sample_table(rollout, self.logged_samples, self.samples_per_context))
            self.logger.log_figure("reward_over_length", length_figure(rollout))

    def baseline_trainer(self, advantage) -> LanguageModelAlgorithm:
        """Return a trainer with the same models and settings, but another advantage estimator."""
        other = type(self)(self.env, self.seed, **{**self.settings, "advantage": advantage})
        self.accelerate_inner(other)
        other.set_models(copy.deepcopy(self.reference), self.reward_model)
        other.score_mean, other.score_std = self.score_mean, self.score_std
        return other

    def judge(self) -> OutcomePredictor:
        """Return a judge for mails without a gold model; it learns from no mail that the reward model has read."""
        return self.sources.judge(self.accelerate_inner, self.reward_model.learnt)

    def export(self, directory: Path) -> None:
        """Write policy, reference and reward model in transformers' format."""
        checkpoint.atomic_folder(directory / POLICY_FOLDER, self.policy.export)
        checkpoint.atomic_folder(directory / "reference", self.reference.export)
        checkpoint.atomic_folder(
            directory / REWARD_MODEL_FOLDER, lambda folder: export_outcome_model(self.reward_model, folder)
        )

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly."""
        return {
            "policy": self.policy.pack(),
            "reference": self.reference.pack(),
            "reward_model": pack_outcome_model(self.reward_model),
            "score_scale": [self.score_mean, self.score_std],
            "update_kl": self.update_kl,
            "kl_to_reference": self.kl_to_reference,
            "kl_controller": self.kl_controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "generator": self.generator.get_state(),
            "guards": self.guards.state_dict(),
            "example_contexts": self.example_contexts(),
            "digest": self.digest,
        }

    def example_contexts(self) -> list[str]:
        """Return contexts of test mails that differ, for scripts/write_email.py."""
        return list(dict.fromkeys(self.env.test.contexts))[:EXAMPLES]

    def load_policy(self, state: dict) -> None:
        """Restore the models that writing and scoring need."""
        self.set_models(
            LanguageModelPolicy.unpack(state["reference"]).to(self.device),
            unpack_outcome_model(state["reward_model"], self.device, self.inference_batch_size),
        )
        self.policy.load_state_dict(state["policy"]["weights"])
        self.score_mean, self.score_std = state["score_scale"]
        self.iteration = state["iteration"]

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`, to train on. Raises ValueError where the mails are others."""
        self.check_same_mails(state)
        self.load_policy(state)
        fixed_lr = None if self.lr_schedule else self.initial_lr
        restore_optimizer(self.optimizer, state["optimizer"], self.lr, fixed_lr)
        self.update_kl.copy_(state["update_kl"])
        self.kl_to_reference.copy_(state["kl_to_reference"])
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.generator.set_state(state["generator"].cpu())
        self.guards.load_state_dict(state["guards"])

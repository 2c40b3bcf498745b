"""Base of the algorithms that fine-tune a language model against a reward model: models, optimiser, state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from email_rl.data.dataset import MailDataset
from email_rl.models.outcome_classifier import REWARD_MODEL_FOLDER
from email_rl.models.outcome_model import OutcomeModel, unpack_outcome_model
from email_rl.models.policy import LanguageModelPolicy
from email_rl.training.guards import Guards
from email_rl.training.model_sources import ModelSources
from email_rl.training.sft import POLICY_FOLDER
from rlcore.algorithm import Algorithm
from rlcore.backends import distributed
from rlcore.runs import checkpoint
from rlcore.runs.logger import Logger, NullLogger
from rlcore.schedules import restore_optimizer

EXAMPLES = 8  # contexts of a checkpoint


class LanguageModelAlgorithm(Algorithm):
    """A policy that starts as a copy of a reference policy, and the reward model that scores its mails.

    `settings` are the arguments for another algorithm of the same class. `score_mean` and `score_std` are the mean and
    standard deviation of rewards of reference mails; they are in every checkpoint.
    """

    env_type = MailDataset
    policy: LanguageModelPolicy  #: set by `set_models`, as are the other two
    reference: LanguageModelPolicy
    reward_model: OutcomeModel

    def __init__(
        self,
        env: MailDataset,
        seed: int,
        settings: dict,
        *,
        sources: ModelSources,
        generation: dict,
        optimizer: Callable,
        kl_controller: Callable,
        lr_schedule: Callable | None,
        lr: float,
        gradient_checkpointing: bool,
        inference_batch_size: int,
        guards: Guards,
    ):
        self.guards = guards
        self.env, self.seed, self.device, self.settings, self.sources = env, seed, env.device, settings, sources
        self.generation, self.inference_batch_size = generation, inference_batch_size
        self.make_optimizer, self.lr_schedule = optimizer, lr_schedule
        self.kl_controller = kl_controller(env.device)
        self.initial_lr, self.lr = lr, torch.tensor(float(lr), device=env.device)
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

    def baseline_trainer(self, advantage) -> LanguageModelAlgorithm:
        """Return a trainer with the same models and settings, but another advantage estimator."""
        other = type(self)(self.env, self.seed, **{**self.settings, "advantage": advantage})
        self.accelerate_inner(other)
        other.set_models(copy.deepcopy(self.reference), self.reward_model)
        other.score_mean, other.score_std = self.score_mean, self.score_std
        return other

    def judge(self) -> OutcomeModel:
        """Return a judge for mails without a gold model."""
        return self.sources.judge(self.accelerate_inner)

    def export(self, directory: Path) -> None:
        """Write policy, reference and reward model in transformers' format."""
        checkpoint.atomic_folder(directory / POLICY_FOLDER, self.policy.export)
        checkpoint.atomic_folder(directory / "reference", self.reference.export)
        checkpoint.atomic_folder(directory / REWARD_MODEL_FOLDER, self.reward_model.export)

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly."""
        return {
            "policy": self.policy.pack(),
            "reference": self.reference.pack(),
            "reward_model": self.reward_model.pack(),
            "score_scale": [self.score_mean, self.score_std],
            "update_kl": self.update_kl,
            "kl_to_reference": self.kl_to_reference,
            "kl_coef": self.kl_controller.coef,
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "generator": self.generator.get_state(),
            "guards": self.guards.state_dict(),
            "example_contexts": self.example_contexts(),
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
        """Restore the result of `state_dict`, to train on."""
        self.load_policy(state)
        restore_optimizer(self.optimizer, state["optimizer"], self.lr)
        self.update_kl.copy_(state["update_kl"])
        self.kl_to_reference.copy_(state["kl_to_reference"])
        self.kl_controller.coef.copy_(state["kl_coef"])
        self.generator.set_state(state["generator"].cpu())
        self.guards.load_state_dict(state["guards"])

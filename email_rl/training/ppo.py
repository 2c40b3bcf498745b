"""PPO with a KL penalty: a language model learns to write mails that a reward model values, near to how it wrote before.

train = (collect, prepare, update) repeated; the losses, advantages and KL estimators are rlcore's, as for the offers.
Checklist: Ziegler et al. 2019; Stiennon et al. 2020; Huang et al. 2024 ("The N+ implementation details of RLHF with PPO").
"""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from email_rl.training.model_cache import cached
from email_rl.data.dataset import EmailEnv
from email_rl.models.language_models import pretrained
from email_rl.models.policy import Policy, Samples
from email_rl.models.hf_io import from_folder, fuse
from email_rl.training.reward_model import RewardModel
from email_rl.models.outcome_classifier import FOLDER as REWARD_MODEL
from email_rl.models.outcome_classifier import Scorer, worth
from email_rl.training.sft import FOLDER as POLICY
from email_rl.training.sft import SFT
from rlcore import checkpoint, losses
from rlcore.backends import distributed as parallel
from rlcore.backends.cuda_graphs import capture, fast
from rlcore.algorithm import Loop
from rlcore.logger import Quiet


class Rollout(NamedTuple):
    """B sampled mails: their tokens, scores [B], and what policy and reference thought of each token [B, R]."""

    samples: Samples
    score: Tensor
    log_prob: Tensor
    reference: Tensor
    value: Tensor


class Batch(NamedTuple):
    """The same, ready to learn from."""

    samples: Samples
    log_prob: Tensor
    reference: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor


class PPOKL(Loop):
    """Fine-tune a policy against a reward model.

    What is not given as a folder is trained: the reward model from `rm` with the settings of `classifier`, the reference
    policy from `lm` with those of `warm_start`; both are kept under `cache`. Scores are the outcome's worth, `expected` or of the most
    likely outcome (`argmax`), in standard deviations of what the reference gets, so that the KL weight means the same for
    every reward model; a mail without an end gets `missing_stop`, on that scale. Under torchrun every process writes its share
    of the mails, and all take the step that one would on the joined minibatch.
    """

    environment = EmailEnv
    sharded = ("generator",)  # what of the state is a process's own

    def __init__(self, env: EmailEnv, seed: int, mode: str, *, lm, rm, classifier: dict, warm_start: dict,
                 writing: dict, advantage, kl: Callable, optim: Callable, schedule: Callable | None,
                 reward_model: str | None, reference: str | None, cache: str, reward: str, missing_stop: float,
                 normalize_on: int, iterations: int, mails: int, minibatches: int, epochs: int, micro_batch: int,
                 clip: float, clip_value: float | None, vf_coef: float, ent_coef: float, max_grad_norm: float,
                 gradient_checkpointing: bool, score_batch: int, eval_every: int, samples_every: int, sampled: int,
                 checkpoint_every: int):
        if reward not in ("expected", "argmax"):
            raise ValueError(f"algo.reward: expected 'expected' or 'argmax', got '{reward}'")
        if parallel.share(mails, "algo.mails") % (minibatches * advantage.samples):
            raise ValueError(f"algo.mails: expected a multiple of minibatches × samples a prompt, {minibatches} × "
                             f"{advantage.samples}, got {parallel.share(mails, 'algo.mails')}")
        if mails // minibatches < 8 and advantage.critic:
            raise ValueError(f"algo.minibatches: expected minibatches of at least 8 mails, got {mails // minibatches}")
        self.settings = {key: value for key, value in locals().items() if key not in ("self", "env", "seed", "mode")}
        self.env, self.seed, self.mode, self.lm = env, seed, mode, lm
        self.rm, self.classifier, self.warm_start, self.writing = rm, classifier, warm_start, writing
        self.paths, self.cache = {REWARD_MODEL: reward_model, POLICY: reference}, cache
        self.advantage, self.kl_weight = advantage, kl(env.device)
        self.optim, self.schedule, self.max_grad_norm = optim, schedule, max_grad_norm
        self.reward_kind, self.missing_stop, self.normalize_on = reward, missing_stop, normalize_on
        self.iterations, self.iteration, self.batch = iterations, 0, mails
        self.minibatches, self.epochs, self.micro_batch = minibatches, epochs, micro_batch
        self.clip, self.clip_value, self.vf_coef, self.ent_coef = clip, clip_value, vf_coef, ent_coef
        self.gradient_checkpointing, self.score_batch = gradient_checkpointing, score_batch
        self.eval_every, self.samples_every, self.sampled, self.checkpoint_every = eval_every, samples_every, sampled, checkpoint_every
        self.generator = torch.Generator(env.device).manual_seed(2 * parallel.own(seed) + 1)
        self.first_lr, self.lr = lm.lr, torch.tensor(float(lm.lr), device=env.device)
        self.kl = torch.full((), torch.nan, device=env.device)  # of the last update
        self.divergence = torch.full((), torch.nan, device=env.device)  # from the reference, nats a mail
        self.policy: Policy | None = None
        self.reference: Policy | None = None
        self.scorer: Scorer | None = None
        self.mean, self.std = 0.0, 1.0  # of what the reference gets

    # ── what is learnt from: a reward model and a reference ─────────────────────────────────────────────────────────
    def begin(self, logger, stop: Callable[[], bool]) -> None:
        """Get reward model and reference policy: given, kept from before, or trained now; then fit the scale of scores."""
        with parallel.first():
            scorer = self.paths[REWARD_MODEL] or self.trained(REWARD_MODEL, RewardModel, self.env, logger, stop, rm=self.rm,
                                                              **self.classifier)
            path = self.paths[POLICY] or self.trained(POLICY, SFT, self.env, logger, stop, lm=self.lm, writing=self.writing,
                                                      **self.warm_start)
        scorer = Scorer.load(scorer, self.env.device, self.score_batch)
        reference = Policy(*from_folder(path, "algo.reference", pretrained, "causal language model"), **self.writing)
        self.take(reference.to(self.env.device), scorer)
        contexts = self.draw(self.normalize_on)
        _, texts = self.reference.write(contexts, 1, self.generator, **self.sampling)
        raw = self.rewards(contexts, texts)
        _, mean, var = parallel.moments(raw.to(self.env.device))
        self.mean, self.std = mean.item(), var.sqrt().clamp_min(1e-6).item()

    def trained(self, name: str, kind: Callable, env: EmailEnv, logger, stop: Callable[[], bool], **settings) -> Path:
        """Return the folder of a model trained with these settings on these mails, now or before."""
        def make(folder: Path) -> None:
            agent = kind(env, self.seed, self.mode, **settings)
            with logger.stage(name, agent.iterations) as stage:
                agent.train(stage, lambda: None, None, stop)
            if stop():  # half trained is not trained
                raise KeyboardInterrupt
            agent.export(folder)
        folder, known = cached(self.cache, name, (settings, env.digest, self.seed), make)
        if parallel.rank() == 0:
            print(f"{name}: {folder}{' (trained before)' if known else ''}")
        return folder

    def judge(self) -> Scorer:
        """Return a judge for mails whose truth is unknown: a reward model that learnt from mails nothing else has seen."""
        path = self.trained("judge", RewardModel, self.env.judging(), Quiet(), lambda: False, rm=self.rm, **self.classifier)
        return Scorer.load(path, self.env.device, self.score_batch)

    def take(self, reference: Policy, scorer: Scorer) -> None:
        """Start from this reference, against this reward model."""
        reference.mode = self.mode  # of writing
        if self.mode != "eager" and self.env.device.type == "cuda":
            fuse(reference.lm)
        self.reference, self.scorer = reference.requires_grad_(False), scorer
        self.policy = copy.deepcopy(reference).requires_grad_(True)
        if self.gradient_checkpointing:
            self.policy.lm.gradient_checkpointing_enable()
        self.optimizer = self.optim(self.policy.parameters(), lr=self.first_lr)
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.loss = fast(self._loss, self.mode, dynamic=None)  # micro-batches are of several lengths
        # Checkpointing keeps the state of a random stream, which can't be recorded.
        mode = "eager" if self.gradient_checkpointing else self.mode
        self.learn, self.reader = (capture(x, mode, self.env.device) for x in (self.learn_from, Policy.__call__))

    @property
    def sampling(self) -> dict:
        """How training samples are drawn: by temperature alone, or log-probabilities would be of another distribution."""
        return {"temperature": self.writing["temperature"], "top_k": 0, "top_p": 1.0, "batch_size": self.score_batch}

    def draw(self, n: int) -> list[str]:
        """Draw n contexts of training mails."""
        contexts = self.env.train.contexts
        return [contexts[i] for i in torch.randint(len(contexts), (n,), generator=self.generator,
                                                   device=self.env.device).tolist()]

    def rewards(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return what the reward model says mails are worth [N], in units of env.values."""
        return worth(self.scorer.probabilities(contexts, texts).double(), self.env.values, self.reward_kind)

    # ── training ────────────────────────────────────────────────────────────────────────────────────────────────────
    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Run to the last iteration, or to the end of the one in which `stop` turns true."""
        if self.policy is None:
            self.begin(logger, stop)
            if evaluate:
                logger.evaluated(0, evaluate())
        for _, metrics in self.loop(logger, save, evaluate, stop):
            rollout, texts, charts = self.collect()
            metrics |= self.update(self.prepare(rollout)) | charts
            if self.iteration % self.samples_every == 0:
                logger.text("samples", self.table(rollout, texts))
        if logger.directory and self.iteration == self.iterations:
            self.save_folders(Path(logger.directory))

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, tuple[list[str], list[str]], dict[str, Tensor]]:
        """Write a batch of mails, score them, and read them with policy and reference."""
        n = self.advantage.samples
        contexts = self.draw(self.batch // parallel.size() // n)
        samples, texts = self.policy.write(contexts, n, self.generator, **self.sampling)
        contexts = [context for context in contexts for _ in range(n)]
        raw = self.rewards(contexts, texts).to(self.env.device)
        stopped = self.policy.ended(samples)
        score = torch.where(stopped, (raw - self.mean) / self.std, self.missing_stop).float()
        own = self.policy.read(samples, self.micro_batch, True, self.reader)
        reference = self.reference.read(samples, self.micro_batch, False, self.reader)
        rollout = Rollout(samples, score, own.log_prob, reference.log_prob, own.value)
        log_ratio = torch.where(samples.alive, rollout.log_prob - rollout.reference, 0.0)
        self.divergence = parallel.mean(log_ratio.sum(1).mean())
        charts = {"objective/kl": self.divergence, "objective/kl_coef": self.kl_weight.coef.clone(),
                  "objective/entropy": torch.where(samples.alive, own.entropy, 0.0).sum(1).mean(),
                  "objective/scores": score.mean(), "objective/proxy_reward": raw.float().mean(),
                  "objective/non_score_reward": -self.kl_weight.coef * self.divergence,
                  "objective/score_total": score.mean() - self.kl_weight.coef * self.divergence,
                  "objective/num_eos": parallel.size() * stopped.sum(), "objective/tokens": samples.alive.sum(1).float().mean()}
        return rollout, (contexts, texts), parallel.means(charts)

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Turn scores into advantages and value targets."""
        samples, log_ratio = rollout.samples, rollout.log_prob - rollout.reference
        value = rollout.value if self.advantage.critic else torch.zeros_like(rollout.value)
        advantage, target = self.advantage(rollout.score, log_ratio, samples.alive, value, self.kl_weight.coef)
        self.kl_weight.update(self.divergence, self.batch)
        return Batch(samples, rollout.log_prob, rollout.reference, value, advantage, target)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take epochs × minibatches steps, each over as many micro-batches as memory asks for."""
        sums: dict[str, Tensor] = {}
        self.policy.lm.train(self.gradient_checkpointing)  # transformers checkpoints in this mode only; there is no dropout
        for _ in range(self.epochs):
            order = torch.randperm(len(batch.value), generator=self.generator, device=self.env.device)
            for rows in order.chunk(self.minibatches):
                tokens = parallel.mean(batch.samples.alive[rows].sum().float())
                self.optimizer.zero_grad(set_to_none=self.mode != "cudagraph")  # recorded, gradients stay at their place
                for some, mails in batch.samples.alike(rows, self.micro_batch):
                    micro = Batch(mails, *(x[some, :mails.response.shape[1]] for x in batch[1:]))
                    share = micro.samples.alive.sum() / tokens  # the mean over a minibatch's tokens, as if it were one
                    metrics = self.learn(micro, share)
                    sums = {name: sums.get(name, 0) + share * x for name, x in metrics.items()}
                parallel.average_gradients(self.policy.parameters())
                norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.optimizer.step()
                sums["grad_norm"] = sums.get("grad_norm", 0) + norm
        self.policy.lm.eval()
        metrics = parallel.means({f"ppo/{name}": x / (self.epochs * self.minibatches) for name, x in sums.items()})
        metrics["ppo/ratio_var"] = metrics.pop("ppo/ratio_square") - metrics["ppo/ratio"].square()
        self.kl.copy_(metrics["ppo/approxkl"])
        if self.advantage.critic:
            metrics["val/mean"] = losses.masked_mean(batch.value, batch.samples.alive, parallel.total)
            metrics["val/explained_variance"] = losses.explained_variance(batch.value, batch.target, batch.samples.alive,
                                                                        parallel.total)
        return metrics

    def learn_from(self, batch: Batch, share: Tensor) -> dict[str, Tensor]:
        """Add a micro-batch's share of the gradient."""
        loss, metrics = self.loss(batch)
        (share * loss).backward()
        return metrics

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss and diagnostics on a micro-batch; with `kl_in_loss`, plus the KL to the reference (k3)."""
        mask = batch.samples.alive
        now = self.policy(batch.samples, entropy=self.ent_coef != 0)
        loss, found = losses.ppo(now.log_prob, batch.log_prob, batch.advantage, now.entropy, now.value, batch.value,
                                 batch.target, mask, mask, clip=self.clip, clip_value=self.clip_value,
                                 vf_coef=self.vf_coef if self.advantage.critic else 0.0, ent_coef=self.ent_coef)
        if self.advantage.kl_in_loss:
            away = torch.where(mask, batch.reference - now.log_prob, 0.0)
            loss = loss + self.kl_weight.coef * losses.masked_mean(losses.kl_k3(away), mask)
        ratio = torch.where(mask, (now.log_prob - batch.log_prob).detach(), 0.0).exp()
        return loss, {"policy_loss": found["policy_loss"], "value_loss": found["value_loss"],
                      "approxkl": found["approx_kl"], "clipfrac": found["clipfrac"],
                      "ratio": losses.masked_mean(ratio, mask), "ratio_square": losses.masked_mean(ratio.square(), mask)}

    # ── what is shown and kept ──────────────────────────────────────────────────────────────────────────────────────
    def table(self, rollout: Rollout, texts: tuple[list[str], list[str]]) -> str:
        """Show a few mails of a batch with their scores."""
        kl = torch.where(rollout.samples.alive, rollout.log_prob - rollout.reference, 0.0).sum(1).tolist()
        lines = [f"| {context} | {text.replace('|', '/').replace(chr(10), '<br>')} | {score:.2f} | {nats:.1f} |"
                 for context, text, score, nats in zip(*texts, rollout.score.tolist(), kl)][:self.sampled]
        return "\n".join(["| context | mail | score | KL, nats |", "|---|---|---|---|", *lines])

    def rival(self, advantage) -> PPOKL:
        """Return a trainer with the same reference, reward model and settings, but another estimator."""
        other = PPOKL(self.env, self.seed, self.mode, **{**self.settings, "advantage": advantage})
        other.take(copy.deepcopy(self.reference), self.scorer)
        other.mean, other.std = self.mean, self.std
        return other

    def save_folders(self, folder: Path) -> None:
        """Write policy, reference and reward model as transformers does."""
        checkpoint.atomic_folder(folder / POLICY, self.policy.export)
        checkpoint.atomic_folder(folder / "reference", self.reference.export)
        checkpoint.atomic_folder(folder / REWARD_MODEL, self.scorer.export)

    def state_dict(self) -> dict:
        """Everything that training needs to go on as if it had not stopped."""
        return {"policy": self.policy.pack(), "reference": self.reference.pack(),
                "scorer": self.scorer.pack(),
                "scale": [self.mean, self.std], "kl_coef": self.kl_weight.coef, "kl": self.kl,
                "divergence": self.divergence, "lr": self.lr, "optimizer": self.optimizer.state_dict(),
                "iteration": self.iteration, "generator": self.generator.get_state()}

    def load_weights(self, state: dict) -> None:
        """Restore what writing and scoring need."""
        self.take(Policy.unpack(state["reference"], self.writing).to(self.env.device),
                  Scorer.unpack(state["scorer"], self.env.device, self.score_batch))
        self.policy.load_state_dict(state["policy"]["weights"])
        self.mean, self.std = state["scale"]
        self.iteration = state["iteration"]

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to train on."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["lr"] = self.lr
        for name, x in (("lr", self.lr), ("kl", self.kl), ("divergence", self.divergence), ("kl_coef", self.kl_weight.coef)):
            x.copy_(state[name])
        self.generator.set_state(state["generator"].cpu())

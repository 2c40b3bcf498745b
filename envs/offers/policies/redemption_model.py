"""The redemption model: the probability that an offer is redeemed, and so the cost of a contact."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from envs.base import VectorEnv
from envs.offers.lookahead import OffersLookahead
from rlcore.backends import distributed
from rlcore.networks import mlp
from rlcore.schedules import restore_optimizer


class RedemptionModel:
    """P(redeem | context, offer, channel) = σ(a[offer]) · σ(b[channel]): P(redeemed if seen) times P(seen).

    Trained by cross-entropy on the realised redemptions of the policy's own contacts; implements rlcore's
    AuxiliaryModel. Raises ValueError where the environment does not report redemptions.
    """

    info_names: tuple[str, ...] = ("redeemed",)

    def __init__(self, env: VectorEnv, *, hidden: list[int], activation: Callable, lr: float):
        if "redeemed" not in env.info_keys:
            raise ValueError(
                "algo.auxiliary: this environment reports no redemptions to learn from, expected algo.auxiliary=null"
            )
        self.context_dim, self.nvec = env.context_dim, env.nvec
        self.net = mlp([env.context_dim, *hidden, sum(env.nvec)], activation, 0.01).to(env.device)
        self.initial_lr = lr
        self.lr = torch.tensor(lr, device=env.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.lr, fused=True, capturable=True)

    def anneal(self, progress: float) -> None:
        """Lower the learning rate linearly to 0, so that the final model averages over much data."""
        self.lr.fill_(self.initial_lr * (1 - progress))

    def log_prob(self, obs: Tensor) -> Tensor:
        """Return the log-probabilities of redeeming, [B, offers, channels]."""
        offer, channel = functional.logsigmoid(self.net(obs[:, : self.context_dim])).split(self.nvec, -1)
        return offer[:, :, None] + channel[:, None, :]

    def predict(self, obs: Tensor) -> Tensor:
        """Return the probabilities of redeeming, [B, offers, channels]."""
        return self.log_prob(obs).exp()

    def fit(
        self, obs: Tensor, action: Tensor, info: dict[str, Tensor], minibatches: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Train on every decision once, in shuffled minibatches; return the mean loss."""
        targets = self.targets(obs, info)
        obs, action = obs.flatten(0, -2), action.flatten(0, -2)
        order = torch.randperm(len(obs), generator=generator, device=obs.device)
        minibatch_losses = []
        for rows in order.chunk(minibatches):
            metrics = self.train_minibatch(obs[rows], action[rows], {name: x[rows] for name, x in targets.items()})
            # cloned, because a recorded step overwrites the result of the last one
            minibatch_losses.append(metrics["losses/spend"].clone())
        return {"losses/spend": torch.stack(minibatch_losses).mean()}

    def train_minibatch(self, obs: Tensor, action: Tensor, info: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one gradient step on B decisions; return the loss."""
        loss = self.loss(obs, action, info)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self.net.parameters())
        self.optimizer.step()
        return {"losses/spend": loss.detach()}

    def targets(self, obs: Tensor, info: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what `loss` learns from, by name, [B] each."""
        return {"redeemed": info["redeemed"].flatten() > 0}

    def loss(self, obs: Tensor, action: Tensor, info: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy of the realised redemptions of the contacts among B decisions."""
        contacted = (action[:, 0] > 0).to(obs.dtype)
        row = torch.arange(len(obs), device=obs.device)
        log_p = self.log_prob(obs)[row, action[:, 0], action[:, 1]].clamp_max(-1e-6)
        log_likelihood = torch.where(info["redeemed"] > 0, log_p, torch.log(-torch.expm1(log_p)))
        contacts = distributed.all_reduce_mean(contacted.sum()).clamp_min(1.0 / distributed.num_processes())
        return -(log_likelihood * contacted).sum() / contacts

    def state_dict(self) -> dict:
        """Return weights and optimiser."""
        return {"weights": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_weights(self, state: dict) -> None:
        """Restore the part that predictions need."""
        self.net.load_state_dict(state["weights"])

    def load_state_dict(self, state: dict) -> None:
        """Restore weights and optimiser, to train on."""
        self.load_weights(state)
        restore_optimizer(self.optimizer, state["optimizer"], self.lr, fixed_lr=None)


class ExpectedRedemptionModel(RedemptionModel):
    """A RedemptionModel of the probabilities that the environment itself expects, of all pairs in the visited states.

    A realised redemption is one draw of one pair; its expectation, where the environment knows it, has no noise, and
    covers pairs that are seldom sent. A pair is weighted by what an error in it costs, its offer's face value. Raises
    ValueError where the environment has no lookahead.
    """

    info_names = ("redeem_probability",)

    def __init__(self, env: VectorEnv, *, hidden: list[int], activation: Callable, lr: float):
        super().__init__(env, hidden=hidden, activation=activation, lr=lr)
        lookahead = env.as_lookahead(privileged=False)
        if not isinstance(lookahead, OffersLookahead):
            raise ValueError(
                "algo.auxiliary: this environment expects no redemptions, expected algo/auxiliary=redemption_model"
            )
        self.lookahead = lookahead
        self.weight = lookahead.face_value / lookahead.face_value.sum()

    def targets(self, obs: Tensor, info: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return P(redeem) of all pairs in the states of a season's observations, [T·N, offers, channels]."""
        return {"redeem_probability": self.lookahead.redeem_probability().flatten(0, 1)}

    def loss(self, obs: Tensor, action: Tensor, info: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy of all pairs' expected redemptions, weighted by face value."""
        target = info["redeem_probability"]
        log_p = self.log_prob(obs).clamp_max(-1e-6)
        log_likelihood = target * log_p + (1 - target) * torch.log(-torch.expm1(log_p))
        return -(self.weight * log_likelihood).sum((1, 2)).mean()

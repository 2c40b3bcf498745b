"""What every learner of actions has: a network, its optimiser, a random stream, a loop, and a state to go on from."""
from __future__ import annotations

import time
from typing import Callable, Iterator

import torch
from torch import Tensor

from rlcore.backends import distributed as parallel
from rlcore.distributions import unflatten


class Loop:
    """The loop of everything that learns by iterations of `batch` steps each; `kl` [] is the last iteration's, or nan.

    Under torchrun a batch is shared by all processes where some of the state is `sharded`, a process's own. The first
    process logs and evaluates, all come by `save`, and all stop where one is told to.
    """

    sharded: tuple[str, ...] = ()
    iterations: int
    iteration: int
    batch: int
    eval_every: int
    checkpoint_every: int
    lr: Tensor  # the optimiser's, which `schedule` writes into
    first_lr: float
    schedule: Callable | None
    kl: Tensor

    def loop(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
             stop: Callable[[], bool]) -> Iterator[tuple[float, dict[str, Tensor | float]]]:
        """Yield the share of the run that is done, and a dict for the metrics of the iteration that the body runs.

        Logs each iteration, calls `evaluate` and `save` every so many and at the end. Ends after the last iteration, or
        after the one in which `stop` turns true.
        """
        while self.iteration < self.iterations:
            started, progress = time.perf_counter(), self.iteration / self.iterations
            if self.schedule:
                self.schedule(self.lr, self.first_lr, progress, self.kl)
            metrics: dict[str, Tensor | float] = {}
            yield progress, metrics
            self.iteration += 1
            steps, last = self.iteration * self.batch, self.iteration == self.iterations
            logger.log(steps, {**metrics, "charts/learning_rate": self.lr}, iteration=self.iteration, steps=self.batch,
                       started=started)
            if evaluate and (self.iteration % self.eval_every == 0 or last):
                logger.evaluated(steps, evaluate())
            stopped = parallel.any_of(stop(), self.lr.device) if self.sharded else stop()
            if self.iteration % self.checkpoint_every == 0 or last or stopped:
                save()
            if stopped:
                break


class Learner(Loop):
    """Base of the learners over a BatchedEnv (envs/base.py); network and optional spend head live on its device.

    `seed` starts the stream that actions and minibatches are drawn from; the environment has its own. Raises ValueError
    where a rollout isn't a season, or where a spend head has nothing to learn from. Under torchrun `env` has this process's
    agents; streams are its own, weights are not.
    """

    sees_price: bool  # observes what only steers, such as a price; else the context alone
    valued: bool  # clears a budget by what `values` says pairs are worth, else by what `logits` prefers at a price

    def __init__(self, env, seed: int, *, net: Callable, optim: Callable, schedule: Callable | None,
                 spend: Callable | None, total_steps: int, num_steps: int, eval_every: int, checkpoint_every: int):
        if env.season and num_steps != env.season:
            raise ValueError(f"algo.num_steps: expected {env.season}, the weeks of a season, got {num_steps}")
        if spend and not env.redeems:
            raise ValueError("algo.spend: this environment tells no redemptions to learn from, expected algo.spend=null")
        self.env, self.num_steps, self.batch = env, num_steps, env.num_agents * num_steps * parallel.size()
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.iterations, self.iteration = max(1, total_steps // self.batch), 0
        torch.manual_seed(seed)  # initial weights
        # Not the environment's seed, or actions would follow from the customers drawn by the same numbers.
        self.generator = torch.Generator(env.device).manual_seed(2 * parallel.own(seed) + 1)
        self.net = net(env.obs_dim if self.sees_price else env.context_dim, env.nvec).to(env.device)
        self.spend = spend(env.context_dim, env.nvec, env.device) if spend else None
        self.optimizer = optim(self.net.parameters())
        self.first_lr = self.optimizer.param_groups[0]["lr"]
        self.lr = torch.tensor(self.first_lr, device=env.device)
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.schedule = schedule
        self.kl = torch.full((), torch.nan, device=env.device)  # of the last iteration, where there is one

    def loop(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
             stop: Callable[[], bool]) -> Iterator[tuple[float, dict[str, Tensor | float]]]:
        """Do as Loop does, and anneal the spend head."""
        for progress, metrics in super().loop(logger, save, evaluate, stop):
            if self.spend:
                self.spend.anneal(progress)
            yield progress, metrics

    def greedy(self, obs: Tensor, mask: Tensor) -> Tensor:
        """Actions [B, K] that are thought best of those allowed, for observations [B, D] under masks [B, *nvec]."""
        worth = self.values(obs[:, :self.env.context_dim]) if self.valued else self.logits(obs)
        return unflatten(worth.masked_fill(~mask.flatten(1), -torch.inf).argmax(-1), self.env.nvec)

    def state_dict(self) -> dict:
        """Everything that training needs to go on as if it had not stopped."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "lr": self.lr, "kl": self.kl,
                "iteration": self.iteration, "spend": self.spend and self.spend.state_dict(),
                "spend_optimizer": self.spend and self.spend.optimizer.state_dict(),
                "generator": self.generator.get_state(), "env": self.env.state_dict()}

    def load_weights(self, state: dict) -> None:
        """Restore what acting needs, on whatever device."""
        self.net.load_state_dict(state["net"])
        if self.spend:
            self.spend.load_state_dict(state["spend"])

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to train on; random streams go on only on the kind of device they come from."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.lr.copy_(state["lr"])
        self.kl.copy_(state["kl"])
        if self.spend:
            self.spend.optimizer.load_state_dict(state["spend_optimizer"])
            self.spend.optimizer.param_groups[0]["lr"] = self.spend.lr
        self.generator.set_state(state["generator"].cpu())
        self.env.load_state_dict(state["env"])
        self.iteration = state["iteration"]

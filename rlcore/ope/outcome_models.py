"""Models of the outcomes of actions: a network or a ridge regression of all actions' outcomes on observations."""
from __future__ import annotations

from typing import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.networks import mlp
from rlcore.normalization import Standardizer

CHUNK = 65536  # rows predicted at once
MIN_OBS_STD = 1e-3
MIN_OUTCOME_STD = 1e-6
MIN_LOG_OUTCOME = 0.01  # share of the mean: the least outcome whose logarithm is taken
Predict = Callable[[Tensor], Tensor]  # observations [B, D] → outcomes of all actions [B, A, K]


@torch.enable_grad()
def fit_sgd(parameters: Iterable, loss: Callable[[], Tensor], lr: float, decay: float, steps: int) -> None:
    """Fit parameters, or groups of them, by AdamW on `steps` minibatches, whose losses `loss` returns; the learning rate falls
    linearly to a fiftieth."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        schedule.step()


class MultiActionRegressor(nn.Module):
    """All actions' outcomes by one network on standardised observations, in the outcomes' own units."""

    def __init__(self, net: nn.Module, inputs: int, actions: int, kinds: int):
        super().__init__()
        self.net, self.actions, self.kinds = net, actions, kinds
        self.inputs = Standardizer(inputs, MIN_OBS_STD)
        self.outcomes = Standardizer(kinds, MIN_OUTCOME_STD)

    def standardized(self, obs: Tensor) -> Tensor:
        """Standardised outcomes [B, A, K] of observations [B, D]."""
        return self.net(self.inputs(obs)).view(-1, self.actions, self.kinds)

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        return self.outcomes.inverse(self.standardized(obs))


class Network:
    """One network of all actions' outcomes, on standardised observations and outcomes."""

    def __init__(self, *, hidden: list[int], activation: Callable, lr: float, decay: float, steps: int, batch_size: int):
        self.hidden, self.activation, self.lr, self.decay = hidden, activation, lr, decay
        self.steps, self.batch_size = steps, batch_size

    def empty(self, inputs: int, actions: int, kinds: int) -> MultiActionRegressor:
        """Build an unfitted model, for a state to be loaded into."""
        return MultiActionRegressor(mlp([inputs, *self.hidden, actions * kinds], self.activation, 0.01), inputs, actions, kinds)

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int,
                 generator: torch.Generator) -> MultiActionRegressor:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D]."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        model = self.empty(obs.shape[1], actions, outcome.shape[1]).to(obs)
        model.inputs.fit(obs)
        model.outcomes.fit(outcome)

        def loss() -> Tensor:
            rows = torch.randint(len(obs), (self.batch_size,), generator=generator, device=obs.device)
            predicted = model.standardized(obs[rows])[torch.arange(len(rows), device=obs.device), action[rows]]
            return functional.mse_loss(predicted, model.outcomes(outcome[rows]))
        fit_sgd(model.net.parameters(), loss, self.lr, self.decay, self.steps)
        return model


class LinearActionModel(nn.Module):
    """All actions' outcomes, linear in standardised observations and, where `scaled`, in their product with a unit's scale."""

    def __init__(self, inputs: int, actions: int, kinds: int, scaled: bool):
        super().__init__()
        columns, double = (inputs + 1) * (2 if scaled else 1), {"dtype": torch.float64}
        self.inputs = Standardizer(inputs, MIN_OBS_STD)
        for name, x in (("log_scale", torch.zeros(inputs + 1, 1, **double) if scaled else None),
                        ("base", torch.zeros(columns, kinds, **double)),
                        ("intercepts", torch.zeros(actions, kinds, **double)),
                        ("slopes", torch.zeros(actions, columns, kinds, **double))):
            self.register_buffer(name, x)

    def standardized(self, obs: Tensor) -> Tensor:
        """Standardised observations [B, D] and a one, float64 [B, D + 1]."""
        return functional.pad(self.inputs(obs).double(), (0, 1), value=1.0)

    def design_matrix(self, obs: Tensor) -> Tensor:
        """The columns that outcomes are linear in, [B, columns]."""
        x = self.standardized(obs)
        if self.log_scale is None:
            return x
        scale = (x @ self.log_scale - self.log_scale[-1]).exp()  # about 1: standardised columns have mean 0
        return torch.cat((x, x * scale), 1)

    def forward(self, obs: Tensor) -> Tensor:
        x = self.design_matrix(obs)
        effects = torch.einsum("bd,adk->bak", x, self.slopes)
        return ((x @ self.base)[:, None] + self.intercepts + effects).to(obs.dtype)


class Linear:
    """Ridge regression: the first action's (nothing) outcomes are linear in observations; each other action adds an intercept
    of its own and slopes, its own (`own`) or shared by all the others.

    `scaled`: observations count again times a unit's scale, exp of a regression of the first outcome's logarithm: monetary
    outcomes are proportional to how much a unit spends.
    """

    def __init__(self, *, ridge: float, own: bool, scaled: bool):
        self.ridge, self.own, self.scaled = ridge, own, scaled

    def empty(self, inputs: int, actions: int, kinds: int) -> LinearActionModel:
        """Build an unfitted model, for a state to be loaded into."""
        return LinearActionModel(inputs, actions, kinds, self.scaled)

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int,
                 generator: torch.Generator) -> LinearActionModel:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D]."""
        kinds = outcome.shape[1]
        model = self.empty(obs.shape[1], actions, kinds).to(obs.device)
        model.inputs.fit(obs)
        each = torch.eye(actions, device=obs.device, dtype=torch.float64)
        group = each[:, 1:] if self.own else each[:, 1:].sum(1, keepdim=True)  # [A, G]: whose slopes an action has
        if self.scaled:
            first = outcome[:, :1].double()
            log_outcome = first.clamp_min(MIN_LOG_OUTCOME * first.abs().mean()).log()
            model.log_scale = solve(model.standardized(obs), log_outcome, self.ridge)
        x = model.design_matrix(obs)
        design = torch.cat((x, each[action], (group[action][:, :, None] * x[:, None]).flatten(1)), 1)
        model.base, model.intercepts, slopes = solve(design, outcome.double(), self.ridge).split(
            (x.shape[1], actions, group.shape[1] * x.shape[1]))
        model.slopes = torch.einsum("ag,gdk->adk", group, slopes.view(group.shape[1], x.shape[1], kinds))
        return model


def solve(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Ridge regression of y [..., N, K] on x [..., N, F], penalty ridge·|weight|²: weights [..., F, K]."""
    gram = x.mT @ x
    return torch.linalg.solve(gram + ridge * torch.eye(x.shape[-1], device=x.device, dtype=x.dtype), x.mT @ y)

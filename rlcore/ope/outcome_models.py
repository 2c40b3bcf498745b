"""Models of the outcomes of actions: a network or a ridge regression of all actions' outcomes on observations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.networks import mlp
from rlcore.normalization import Standardizer

CHUNK = 65536  # rows predicted at once
OUTPUT_GAIN = 0.01  # gain of the last layer's initial weights: predictions start near the mean
MIN_OBS_STD = 1e-3
MIN_OUTCOME_STD = 1e-6
MIN_LOG_OUTCOME = 0.01  # share of the mean: the least outcome whose logarithm is taken
Predict = Callable[[Tensor], Tensor]  # observations [B, D] → outcomes of all actions [B, A, K]


class OutcomeLearner(Protocol):
    """Fits a model of outcomes: a module from observations [B, D] to the outcomes of all actions [B, A, K]."""

    def empty(self, inputs: int, actions: int, kinds: int) -> nn.Module:
        """Build an unfitted model, to load a `state_dict` into."""

    def __call__(
        self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator
    ) -> nn.Module:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D]."""


@torch.enable_grad()
def fit_sgd(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    loss: Callable[[], Tensor],
    lr: float,
    decay: float,
    steps: int,
) -> None:
    """Fit parameters, or groups of them, by AdamW on `steps` minibatches, whose losses `loss` returns.

    The learning rate starts at `lr` and falls linearly to a fiftieth. `decay` is AdamW's weight decay.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        minibatch_loss = loss()
        torch.autograd.backward(minibatch_loss)
        optimizer.step()
        schedule.step()


class MultiActionRegressor(nn.Module):
    """All actions' outcomes by one network on standardised observations, in the outcomes' own units."""

    def __init__(self, net: nn.Module, inputs: int, actions: int, kinds: int):
        super().__init__()
        self.net = net
        self.actions = actions
        self.kinds = kinds
        self.inputs = Standardizer(inputs, MIN_OBS_STD)
        self.outcomes = Standardizer(kinds, MIN_OUTCOME_STD)

    def standardized(self, obs: Tensor) -> Tensor:
        """Standardised outcomes [B, A, K] of observations [B, D]."""
        x = self.inputs(obs)
        outcomes: Tensor = self.net(x)
        return outcomes.view(-1, self.actions, self.kinds)

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        """Outcomes [B, A, K], in their own units, of observations [B, D]."""
        standardized = self.standardized(obs)
        return self.outcomes.inverse(standardized)


class Network:
    """One network of all actions' outcomes, on standardised observations and outcomes."""

    def __init__(
        self,
        *,
        hidden: list[int],
        activation: Callable[[], nn.Module],
        lr: float,
        decay: float,
        steps: int,
        batch_size: int,
    ):
        self.hidden = hidden
        self.activation = activation
        self.lr = lr
        self.decay = decay
        self.steps = steps
        self.batch_size = batch_size

    def empty(self, inputs: int, actions: int, kinds: int) -> MultiActionRegressor:
        """Build an unfitted model, to load a `state_dict` into."""
        sizes = [inputs, *self.hidden, actions * kinds]
        net = mlp(sizes, self.activation, OUTPUT_GAIN)
        return MultiActionRegressor(net, inputs, actions, kinds)

    def __call__(
        self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator
    ) -> MultiActionRegressor:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D]."""
        seed = torch.randint(2**31, (1,), generator=generator, device=generator.device)
        torch.manual_seed(int(seed))  # of the initial weights
        model = self.empty(obs.shape[1], actions, outcome.shape[1])
        model = model.to(obs)
        model.inputs.fit(obs)
        model.outcomes.fit(outcome)

        def loss() -> Tensor:
            rows = torch.randint(len(obs), (self.batch_size,), generator=generator, device=obs.device)
            each = torch.arange(len(rows), device=obs.device)
            predicted = model.standardized(obs[rows])
            wanted = model.outcomes(outcome[rows])
            return functional.mse_loss(predicted[each, action[rows]], wanted)

        fit_sgd(model.net.parameters(), loss, self.lr, self.decay, self.steps)
        return model


class LinearActionModel(nn.Module):
    """All actions' outcomes, linear in standardised observations.

    If `scaled`, outcomes are linear in the observations' product with a unit's scale too.
    """

    log_scale: Tensor | None  #: weights of the logarithm of a unit's scale, [D + 1, 1]
    base: Tensor  #: [columns, K]
    intercepts: Tensor  #: [A, K]
    slopes: Tensor  #: [A, columns, K]

    def __init__(self, inputs: int, actions: int, kinds: int, scaled: bool):
        super().__init__()
        columns = 2 * (inputs + 1) if scaled else inputs + 1
        self.inputs = Standardizer(inputs, MIN_OBS_STD)
        log_scale = torch.zeros(inputs + 1, 1, dtype=torch.float64) if scaled else None
        base = torch.zeros(columns, kinds, dtype=torch.float64)
        intercepts = torch.zeros(actions, kinds, dtype=torch.float64)
        slopes = torch.zeros(actions, columns, kinds, dtype=torch.float64)
        self.register_buffer("log_scale", log_scale)
        self.register_buffer("base", base)
        self.register_buffer("intercepts", intercepts)
        self.register_buffer("slopes", slopes)

    def standardized(self, obs: Tensor) -> Tensor:
        """Standardised observations [B, D] and a one, float64 [B, D + 1]."""
        x = self.inputs(obs).double()
        return functional.pad(x, (0, 1), value=1.0)

    def design_matrix(self, obs: Tensor) -> Tensor:
        """The columns that outcomes are linear in, [B, columns]."""
        x = self.standardized(obs)
        if self.log_scale is None:
            return x
        intercept = self.log_scale[-1]
        scale = (x @ self.log_scale - intercept).exp()  # about 1: standardised columns have mean 0
        return torch.cat((x, x * scale), 1)

    def forward(self, obs: Tensor) -> Tensor:
        """Outcomes [B, A, K] of observations [B, D]."""
        x = self.design_matrix(obs)
        baseline = (x @ self.base)[:, None]
        effects = torch.einsum("bd,adk->bak", x, self.slopes)
        outcomes = baseline + self.intercepts + effects
        return outcomes.to(obs.dtype)


class Linear:
    """Ridge regression of all actions' outcomes on observations.

    The outcomes of the first action (nothing) are linear in observations. Each other action adds an intercept of its
    own and slopes: its own (`own`), or one set shared by all the others. `ridge` is the penalty of `solve` on slopes.
    Intercepts are free: a penalised one would pull the outcomes of an action with few rows towards 0, and thereby
    invent an effect of that action.

    With `scaled`, observations enter a second time, multiplied by a unit's scale: exp of a regression of the first
    outcome's logarithm. Monetary outcomes are proportional to a unit's scale of spend.
    """

    def __init__(self, *, ridge: float, own: bool, scaled: bool):
        self.ridge = ridge
        self.own = own
        self.scaled = scaled

    def empty(self, inputs: int, actions: int, kinds: int) -> LinearActionModel:
        """Build an unfitted model, to load a `state_dict` into."""
        return LinearActionModel(inputs, actions, kinds, self.scaled)

    def __call__(
        self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator
    ) -> LinearActionModel:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D].

        Raises ValueError where an action was never taken.
        """
        check_every_action(action, actions)
        kinds = outcome.shape[1]
        model = self.empty(obs.shape[1], actions, kinds)
        model = model.to(obs.device)
        self.fit_inputs(model, obs)
        if self.scaled:
            model.log_scale = self._log_scale(model.standardized(obs), outcome[:, :1].double())
        x = model.design_matrix(obs)
        columns = x.shape[1]
        intercept = model.inputs.mean.shape[0]  # the column of ones

        one_hot = torch.eye(actions, device=obs.device, dtype=torch.float64)
        others = one_hot[:, 1:]
        group = others if self.own or actions == 1 else others.sum(1, keepdim=True)  # [A, G]: slopes of an action
        groups = group.shape[1]
        slope_columns = [column for column in range(columns) if column != intercept]
        interactions = group[action][:, :, None] * x[:, None, slope_columns]  # [N, G, columns - 1]
        design = torch.cat((x, others[action], interactions.flatten(1)), 1)
        penalty = torch.full((design.shape[1],), float(self.ridge), device=obs.device, dtype=torch.float64)
        penalty[intercept] = 0.0
        penalty[columns : columns + actions - 1] = 0.0

        weights = self.fit_weights(design, outcome.double(), penalty)
        base, intercepts, slopes = torch.split(weights, [columns, actions - 1, groups * len(slope_columns)])
        slopes_of_group = slopes.new_zeros(groups, columns, kinds)
        slopes_of_group[:, slope_columns] = slopes.view(groups, len(slope_columns), kinds)
        model.base = base
        model.intercepts = functional.pad(intercepts, (0, 0, 1, 0))
        model.slopes = torch.einsum("ag,gdk->adk", group, slopes_of_group)
        return model

    def fit_inputs(self, model: LinearActionModel, obs: Tensor) -> None:
        """Standardise observations by those [N, D] that are learned from."""
        model.inputs.fit(obs)

    def fit_weights(self, design: Tensor, outcome: Tensor, penalty: Tensor) -> Tensor:
        """Fit weights [F, K] of a design matrix [N, F] to outcomes [N, K]; `penalty` [F] is each column's."""
        return solve(design, outcome, penalty)

    def _log_scale(self, x: Tensor, outcome: Tensor) -> Tensor:
        """Weights [D + 1, 1] of the logarithm of an outcome [N, 1] on standardised observations [N, D + 1]."""
        smallest = MIN_LOG_OUTCOME * outcome.abs().mean()
        log_outcome = outcome.clamp_min(smallest).log()
        penalty = torch.full((x.shape[1],), float(self.ridge), device=x.device, dtype=x.dtype)
        penalty[-1] = 0.0  # the column of ones
        return solve(x, log_outcome, penalty)


def solve(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Ridge regression of y [..., N, K] on x [..., N, F]: (xᵀx + diag(penalty))⁻¹ xᵀy, [..., F, K].

    Hoerl & Kennard 1970, with a penalty of each column [F]. Raises ValueError where columns without a penalty depend
    on each other.
    """
    gram = x.mT @ x
    weights: Tensor
    weights, failed = torch.linalg.solve_ex(gram + torch.diag(penalty), x.mT @ y)
    if failed.any() or not weights.isfinite().all():
        raise ValueError(
            "ridge: expected numbers and independent columns, or a penalty above 0; got a regression without a solution"
        )
    return weights


def check_every_action(action: Tensor, actions: int) -> None:
    """Raise ValueError, with its number, for an action of `actions` that none of the actions [N] is."""
    count = action.bincount(minlength=actions)
    if not count.all():
        raise ValueError(f"action {int(count.argmin())}: expected decisions to learn from, got none")

"""How likely a log's outcomes are under customers' parameters: the world's own probabilities, differentiable in θ."""
from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from envs.offers.world.customers import CHURNED, HABITS, SUBSCRIBED, UNSUBSCRIBED, CustomerState, Customers, World
from envs.offers.world.response import churn_probability, opt_out_probability, outcome
from envs.offers.world.transition import habit_gain
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope.cross_fitting import rows_by_episode

TINY = 1e-6  # the least probability whose logarithm is taken


@dataclass(frozen=True)
class Panel:
    """Logged seasons of N customers, week by week: [T, N] but `features` [F, N] and `customer` [N]; a State has tensors
    of that shape, and `known` and `inputs` are [K, T, N]: what was observed of a customer beside features, and what a model
    is told where it is told something else. Where `there` is false nothing was logged, and the rest means nothing."""

    features: Tensor
    customer: Tensor
    there: Tensor  # bool
    week: Tensor  # int64
    state: CustomerState
    offer: Tensor
    channel: Tensor
    bought: Tensor  # bool
    redeemed: Tensor  # bool
    following: CustomerState
    margin: Tensor  # money that a purchase brought, 0 without one
    spend: Tensor
    propensity: Tensor  # float64, NaN where missing
    valid: Tensor  # pairs that were allowed
    known: Tensor | None = None
    inputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.customer)

    def map(self, function) -> Panel:
        """Apply `function` to every tensor."""
        def over(x):
            return x if x is None else CustomerState(*map(function, x)) if isinstance(x, CustomerState) else function(x)
        return Panel(*(over(getattr(self, f.name)) for f in fields(self)))

    def __getitem__(self, rows) -> Panel:
        """Take customers."""
        return self.map(lambda x: x[..., rows])


def panel(log: LoggedDataset, env, where: str) -> Panel:
    """Lay a log of the offers environment out by customer and week; raise ValueError where it doesn't say what came next,
    or tells what the world can't have done."""
    if log.next_obs is None:
        raise ValueError(f"{where}: expected next_state_* and next_valid_*, what decisions led to")
    state, following = (env.codec.decode_state(x[:]) for x in (log.obs, log.next_obs))
    offer, channel = env.world.catalogue.action_codec.decode(log.action)
    bought, redeemed, world, terms = log.outcomes["trips"] > 0, log.outcomes["redeemed"] > 0, env.world, env.world.reward
    if (wrong := redeemed & (~bought | (offer == 0))).any():
        raise ValueError(f"{where}: {named_rows(wrong, 0)}, column 'redeemed': expected a redemption only of an offer and "
                         "with a trip")
    if (wrong := (log.step < 0) | (log.step >= world.weeks)).any():
        raise ValueError(f"{where}: {named_rows(wrong, 0)}, column 'week': expected a week of the season, 0 to "
                         f"{world.weeks - 1}")
    churned = (following.status == CHURNED) & (state.status != CHURNED)
    annoyed = (offer > 0) & (state.fatigue >= terms.fatigue_limit)
    margin = (log.reward + log.cost + terms.churn_cost * churned + terms.fatigue_penalty * annoyed
              - terms.trips * bought)
    place = rows_by_episode(log.unit, log.episode, log.step, (log.names.unit, log.names.episode, log.names.step)).T
    rows, first = place.clamp_min(0), place[0]

    def lay(x):
        return x[rows]
    return Panel(log.obs[first, :log.static_dim].T, log.unit[first], place >= 0, lay(log.step), CustomerState(*map(lay, state)),
                 lay(offer), lay(channel), lay(bought), lay(redeemed), CustomerState(*map(lay, following)),
                 lay(torch.where(bought, margin, 0.0)), lay(log.cost), lay(log.propensity), lay(log.action_mask[:].sum(1)),
                 lay(env.codec.decode_dynamics(log.obs[:])).permute(2, 0, 1))


def said(p: Tensor, happened: Tensor, known: Tensor) -> Tensor:
    """log P of what happened where it is known, else 0; p is its probability."""
    p = p.clamp(TINY, 1 - TINY)
    return torch.where(known, torch.where(happened, p, 1 - p).log(), 0.0)


def log_likelihood(c: Customers, world: World, log: Panel) -> dict[str, Tensor]:
    """Log-likelihood of what a panel's weeks brought, by kind of outcome, [T, N] each, 0 where there is none.

    A week's draws are independent given the response (world.transition). Money is scored as a Gamma of shape 1, −log g − y/g:
    its maximum is the mean, whatever the distribution (McCullagh & Nelder 1989, §8).
    """
    h, f, d = (x.to(c.alpha.dtype) for x in log.state[:3])
    alive, subscribed = log.there & (log.state.status != CHURNED), log.there & (log.state.status == SUBSCRIBED)
    offer = torch.where(subscribed, log.offer, 0)
    contacted, after = offer > 0, log.following
    stays = alive & (after.status != CHURNED)
    o = outcome(c, world, log.week, h, f, d, offer, log.channel)
    p = torch.where(log.redeemed, o.redeem, torch.where(log.bought, o.buy, 1 - o.redeem - o.buy))
    gain = torch.where(log.redeemed, habit_gain(c, h, True), habit_gain(c, h, False))
    up, down = after.habit > log.state.habit, after.habit < log.state.habit
    lost = churn_probability(c, h, f) * torch.where(log.bought, 0.25, 1.0)
    kept = stays & (after.status == SUBSCRIBED)
    every = torch.ones_like(alive)
    return {
        "response": said(p, every, alive),
        "habit": said(gain, up, stays & log.bought & (log.state.habit < HABITS - 1))
        + said(c.pi_minus.expand_as(h), down, stays & ~log.bought & (log.state.habit > 0)),
        "fatigue": said(c.delta_f.expand_as(h), after.fatigue < log.state.fatigue, kept & ~contacted & (log.state.fatigue > 0)),
        "expectation": said(c.delta_d.expand_as(h), after.expectation < log.state.expectation,
                            kept & ~log.redeemed & (log.state.expectation > 0)),
        "churn": said(lost, after.status == CHURNED, alive),
        "opt_out": said(opt_out_probability(c, f, world.catalogue.opt_out[log.channel]), after.status == UNSUBSCRIBED, stays & contacted),
        "margin": torch.where(alive & log.bought, -c.margin.log() - log.margin / c.margin, 0.0),
    }


def probabilities(c: Customers, world: World, log: Panel) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """What a panel's outcomes are predicted to be: {outcome: (probability, happened, known)}, [T, N] each."""
    h, f, d = (x.to(c.alpha.dtype) for x in log.state[:3])
    alive = log.there & (log.state.status != CHURNED)
    offer = torch.where(log.state.status == SUBSCRIBED, log.offer, 0)
    o = outcome(c, world, log.week, h, f, d, offer, log.channel)
    bought = o.redeem + o.buy
    lost = churn_probability(c, h, f) * (1 - 0.75 * bought)
    contacted = alive & (offer > 0)
    return {"trips": (bought, log.bought, alive), "redeemed": (o.redeem, log.redeemed, contacted),
            "opt_out": ((1 - lost) * opt_out_probability(c, f, world.catalogue.opt_out[log.channel]),
                        (log.following.status == UNSUBSCRIBED), contacted),
            "churn": (lost, log.following.status == CHURNED, alive)}

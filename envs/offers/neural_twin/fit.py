"""Fit a neural twin to a log: networks of what customers answer, given features and the history that the log tells."""
from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterable, Iterator

import torch
from hydra.utils import instantiate
from torch import Tensor

from envs.offers.world.catalogue import ActionCodec
from envs.offers.world.history import KINDS, History, column_names
from envs.offers.twin.likelihood import Panel, panel
from envs.offers.neural_twin.customers import Crowd, Member, chains, inputs_of
from envs.offers.neural_twin.response_models import Valid, likelihood, rest_likelihood
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, UNSUBSCRIBED, World
from rlcore import checkpoint
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope.cross_fitting import consecutive_ids
from rlcore.ope.outcome_models import CHUNK


class Neural:
    """Responses by `response`, a likelihood or a learner of effects; churn, opt-out and margin by `rest`.

    halvings: of the history's columns, weeks. monotone: trips and redemptions grow with face value, whatever was learned.
    """

    unheard = "the twin's customers never do"  # what never happens in the log

    def __init__(self, *, response: Callable, rest: Callable, halvings: list[float], monotone: bool):
        if not halvings or min(halvings) <= 0:
            raise ValueError(f"algo.twin.halvings: expected weeks above 0, got {halvings}")
        self.response, self.rest, self.halvings, self.monotone = response, rest, halvings, monotone

    def build(self, env, seed: int, members: int) -> list[Member]:
        """Make unfitted members."""
        catalogue, size = env.world.catalogue, env.static_dim + len(column_names(self.halvings)) + 1
        self.learners = self.response(catalogue), self.rest(len(catalogue.channels))
        self.order = chains(catalogue) if self.monotone else []
        torch.manual_seed(seed)
        return [Member(*(learner.empty(size) for learner in self.learners), self.order) for _ in range(members)]

    def lay(self, log: LoggedDataset, env) -> Panel:
        """Lay a log out by customer and week, with the history before each decision; raise ValueError where that isn't told."""
        found = panel(log, env, "log")
        skipped = ((found.week != torch.arange(len(found.week), device=found.week.device)[:, None]) & found.there).any(0)
        if skipped.any():
            raise ValueError(f"log: {named_rows(log.unit == found.customer[skipped][0], 0)}, column 'week': expected all weeks of "
                             "a season from the first: a neural twin learns from the history")
        return replace(found, inputs=self.inputs(found, env.world))

    def inputs(self, log: Panel, world: World) -> Tensor:
        """What networks see before each decision of a panel, [D, T, N]."""
        history, found = History.start(log.state.status[0], world.season.dtype), []
        for t in range(len(log.week)):
            found.append(inputs_of(log.features.T, history, self.halvings, world.season[t]))
            history = history.after(log.following.status[t], world.catalogue,
                                    *(x[t] for x in (log.offer, log.channel, log.bought, log.redeemed)))
        return torch.stack(found).permute(2, 0, 1)

    def silence(self, silent: tuple[str, ...], members: Iterable[Member]) -> None:
        """What never happens in the log is learned never to happen."""

    def state_dict(self) -> dict:
        """What members can't be used without: they are rebuilt by the configuration that a checkpoint holds."""
        return {"halvings": self.halvings}

    def fit(self, member: Member, world: World, log: Panel, weight: Tensor, held: Panel, held_weight: Tensor,
            generator: torch.Generator) -> dict:
        """Fit to weights [T, N] of a panel; return how likely that and what was held out became, a decision.

        A decision is taken as often as its weight says, the rest of a weight by chance.
        """
        t, n = torch.nonzero((weight > 0) & (log.state.status != CHURNED)).unbind(1)
        times = (weight[t, n] + torch.rand(len(t), generator=generator, device=t.device)).floor().long()
        t, n = t.repeat_interleave(times), n.repeat_interleave(times)
        weeks, inputs = weeks_of(log, t, n, world.catalogue.action_codec), log.inputs[:, t, n].T.contiguous()
        propensity = log.propensity[t, n]
        learn, learn_rest = self.learners
        member.response = Valid(learn(inputs, weeks["action"], torch.stack((weeks["bought"], weeks["redeemed"]), 1).to(inputs),
                                      generator, None if propensity.isnan().any() else propensity, consecutive_ids(n)), self.order)
        member.rest = learn_rest(inputs, weeks, generator)
        said = ((sum((x * w).sum() for x in Heard(member, world, part, self.halvings).likelihoods().values()) / w.sum()).item()
                for part, w in ((log, weight), (held, held_weight)))
        return dict(zip(("twin/fitted", "twin/held_out"), said))

    def answers(self, member: Member, world: World, log: Panel) -> Heard:
        """Ask a member about a panel."""
        return Heard(member, world, log, self.halvings)

    def shuffled(self, log: Panel, order: Tensor, env) -> Iterator[tuple[str, Panel]]:
        """Shuffle what networks see of customers: a feature at a time, and the columns of each kind of history together, week by
        week."""
        static = len(log.features)
        groups = {name: [k] for k, name in enumerate(
            getattr(env.population, "feature_names", [f"feature {k}" for k in range(static)]))}
        columns = column_names(self.halvings)
        for kind in (*KINDS, "last"):
            groups["recency" if kind == "last" else kind] = [static + k for k, name in enumerate(columns) if name.startswith(kind)]
        for name, rows in groups.items():
            inputs = log.inputs.clone()
            inputs[rows] = inputs[rows][..., order]
            yield name, replace(log, inputs=inputs)


def weeks_of(log: Panel, t: Tensor, n: Tensor, codec: ActionCodec) -> dict[str, Tensor]:
    """What was done to customers n [B] in weeks t [B], and what came of it."""
    status, after = log.state.status[t, n], log.following.status[t, n]
    offer, channel = torch.where(status == SUBSCRIBED, log.offer[t, n], 0), log.channel[t, n]
    return {"action": codec.treatment(codec.encode(offer, channel)), "channel": channel,
            "contacted": offer > 0, "bought": log.bought[t, n], "redeemed": log.redeemed[t, n], "churned": after == CHURNED,
            "left": after == UNSUBSCRIBED, "margin": log.margin[t, n]}


class Heard:
    """What a member says of a panel (envs/offers/twin/structural_predictions.py has the same of a structural twin)."""

    def __init__(self, member: Member, world: World, log: Panel, halvings: list[float]):
        self.member, self.world, self.log, self.halvings = member, world, log, halvings
        self.at = (log.there & (log.state.status != CHURNED)).nonzero().unbind(1)
        self.weeks = weeks_of(log, *self.at, world.catalogue.action_codec)

    @torch.no_grad()
    def told(self) -> tuple[Tensor, ...]:
        """P(trip) and P(redeemed) of what was done, of a trip without a contact and by any on average, the mean spend of one,
        then churn, opt-out and margin, of all weeks with a living customer."""
        parts, catalogue, start = [], self.world.catalogue, 0
        codec = catalogue.action_codec
        offer, channel = codec.decode(codec.every_action(self.at[0].device)[codec.contacts])
        for inputs in self.log.inputs[:, self.at[0], self.at[1]].T.split(CHUNK):
            trip, redeem, *rest = self.member(inputs)
            action = self.weeks["action"][start:start + len(inputs), None]
            spend = catalogue.spend(offer, channel, redeem[:, 1:])
            parts.append((*(x.gather(1, action)[:, 0] for x in (trip, redeem)), trip[:, 0], trip[:, 1:].mean(1), spend.mean(1), *rest))
            start += len(inputs)
        return tuple(torch.cat(x) for x in zip(*parts))

    def laid(self, x: Tensor) -> Tensor:
        """Lay values of living customers' weeks out, [T, N], 0 elsewhere."""
        return x.new_zeros(self.log.there.shape).index_put(self.at, x)

    def likelihoods(self) -> dict[str, Tensor]:
        """Log-likelihood by kind of outcome, [T, N] each."""
        trip, redeem, _, _, _, *rest = self.told()
        outcome = torch.stack((self.weeks["bought"], self.weeks["redeemed"]), 1)
        found = {"response": likelihood(torch.stack((trip, redeem), 1), outcome), **rest_likelihood(rest, self.weeks)}
        return {name: self.laid(x) for name, x in found.items()}

    def probabilities(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """{outcome: (probability, happened, known)}, [T, N] each."""
        trip, redeem, _, _, _, churn, leave, _ = self.told()
        lost = churn[:, 0] + trip * (churn[:, 1] - churn[:, 0])
        left = (1 - lost) * leave.gather(1, self.weeks["channel"][:, None])[:, 0]
        alive, contacted = (self.laid(x) for x in (torch.ones_like(self.weeks["bought"]), self.weeks["contacted"]))
        return {name: (self.laid(p), self.laid(self.weeks[happened]), known) for name, p, happened, known in (
            ("trips", trip, "bought", alive), ("redeemed", redeem, "redeemed", contacted), ("opt_out", left, "left", contacted),
            ("churn", lost, "churned", alive))}

    def uplift(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a contact drawn from all pairs adds to P(trip), P(trip) without one, and what it costs, [T, N] each."""
        nothing, contacts, spend = self.told()[2:5]
        return tuple(self.laid(x) for x in (contacts - nothing, nothing, spend))

    @torch.no_grad()
    def played(self, first: int, generator: torch.Generator) -> Tensor:
        """Expected trips, margin and spend of every week, [3, T]; after week `first` of the history that drawn outcomes made.
        Who left, and who stayed, is what the log says."""
        log, world, found = self.log, self.world, []
        crowd = Crowd([self.member], torch.zeros_like(log.customer), log.features.T, world, self.halvings)
        history = History.start(log.state.status[0], world.season.dtype)
        for t in range(len(log.week)):
            u = torch.rand(UNIFORMS, len(log), generator=generator, device=log.features.device)
            there = log.there[t] & (log.state.status[t] != CHURNED)
            week = crowd.live(history, t, torch.where(there, log.offer[t], 0), log.channel[t], u, False)
            found.append(torch.stack([(x * there).sum() for x in (week.trip, week.trip * week.margin, week.spend)]))
            came = (week.bought, week.redeemed) if t >= first else (log.bought[t], log.redeemed[t])
            history = history.after(log.following.status[t], world.catalogue, log.offer[t], log.channel[t], *came)
        return torch.stack(found, 1)


class Ensemble:
    """The members of a neural twin's checkpoint, to make crowds of. `only` is the one that all customers then are."""

    def __init__(self, path: str, env, only: int | None = None):
        state = checkpoint.load(path)
        twin, self.path, self.env, self.only = instantiate(state["config"]["algo"]["twin"], _convert_="all"), path, env, only
        self.halvings, agent = twin.halvings, state["agent"]
        self.members = twin.build(env, 0, agent["iteration"])
        try:
            for member, held in zip(self.members, agent["members"]):
                member.load_state_dict(held)
                member.to(env.device)
        except RuntimeError as error:
            raise ValueError(f"env.twin={path}: fitted to customers or a catalogue of another kind: "
                             f"{str(error).splitlines()[-1].strip()}") from error

    def under(self, member: int) -> Ensemble:
        """The same, all customers as one member says."""
        return Ensemble(self.path, self.env, member)

    def crowd(self, features: Tensor, world: World) -> Crowd:
        """Customers of features [N, F]: alike many respond as each of the members."""
        who = torch.arange(len(features), device=features.device) * len(self.members) // len(features)
        return Crowd(self.members, who if self.only is None else torch.full_like(who, self.only), features, world, self.halvings)

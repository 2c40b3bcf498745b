"""Ask a policy for each customer's steps as the price of money falls, at as few prices as tell them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from envs.live.decide import DecisionInputs
from envs.live.plan.arms import HOLDOUT, RL
from envs.live.plan.deciding import Customers, PolicyPackage, inputs_of
from envs.live.plan.reasons import RuleNames
from envs.offers.planning.knapsack import Increments, compact, concat_increments, upper_hull
from envs.offers.world.catalogue import Catalogue

STRIDE = 8  # grid prices from one that everybody is asked at to the next


@dataclass
class Scored:
    """Scores of the customers who may be sent something, by blocks, and the memory of those whom a rule refuses."""

    eligible: np.ndarray  #: rows of the table, int64 [E]
    steps: Increments  #: [E, K]
    without: tuple[Increments, ...]  #: for each set of barred pairs the steps without it, of those who have one, [E, K]
    spend: Tensor  #: expected, corrected by the forecast, float32 [E, P]
    factor: Tensor  #: that corrects what is given on redemption, [P]
    memory: list[tuple[np.ndarray, Tensor]] = field(default_factory=list)  #: rows, and their memory


def score_customers(
    package: PolicyPackage, customers: Customers, factor: Tensor, arm: np.ndarray, block: int, barred: list[Tensor]
) -> Scored:
    """Score the customers outside the holdout, by blocks; `factor` [P] corrects what is given on redemption.

    `barred` are sets of pairs, [P] each, that customers may have to do without.
    """
    mask = customers.options.action_mask
    eligible = customers.eligible.numpy() & (arm != HOLDOUT)
    refused = (package.catalogue.valid.flatten() & ~mask).any(1).numpy() & (arm == RL)
    steps, spends = [no_steps(0)], [torch.zeros(0, mask.shape[1])]
    without = [[no_steps(0)] for _ in barred]
    kept_memory = []
    for start in range(0, len(customers), block):
        rows = slice(start, min(start + block, len(customers)))
        inputs = inputs_of(package, customers, rows)
        kept = np.flatnonzero(refused[rows])
        kept_memory.append((kept + start, inputs.memory[torch.from_numpy(kept)]))
        here = torch.from_numpy(np.flatnonzero(eligible[rows]))
        if len(here):
            found, spend = ladders(package, inputs.take(here), factor)
            steps.append(found)
            # the steps of other arms are read by nobody
            policys = torch.from_numpy(arm[rows] == RL)[here, None]
            read = found._replace(price=found.price.masked_fill(~policys, -torch.inf))
            for kept_steps, pairs in zip(without, barred):
                kept_steps.append(without_pairs(package, inputs.take(here), factor, read, pairs))
            spends.append(spend)
    others = tuple(concat_increments(x) for x in without)
    return Scored(np.flatnonzero(eligible), concat_increments(steps), others, torch.cat(spends), factor, kept_memory)


def without_pairs(
    package: PolicyPackage, inputs: DecisionInputs, factor: Tensor, steps: Increments, barred: Tensor
) -> Increments:
    """Return the steps [N, K] without the pairs of `barred` [P], of those whose own steps [N, K] have such a pair."""
    rows = (barred[steps.action] & (steps.price > -torch.inf)).any(1).nonzero()[:, 0]
    if not len(rows):
        return no_steps(inputs.num_customers)
    theirs = inputs.take(rows)
    found, _ = ladders(package, theirs._replace(action_mask=theirs.action_mask & ~barred), factor)
    return scattered(found, rows, inputs.num_customers)


def ladders(package: PolicyPackage, inputs: DecisionInputs, factor: Tensor) -> tuple[Increments, Tensor]:
    """Return the steps [N, K] of N customers, and what each pair is expected to spend, corrected [N, P].

    A policy of action values has the steps of the exact knapsack: its values' upper hull. A policy that observes the
    price has those of `demand_curve` on the grid. Whoever is sent nothing at the lowest price has no step there, so
    that only the others are asked at further prices.
    """
    lowest = package.prices[-1:]
    scores = package.score(inputs, lowest)
    spend = corrected(scores.spend, factor, package.catalogue)
    if not package.observes_price:
        return compact(upper_hull(scores.logits[0] + lowest * scores.spend, spend)), spend
    buyers = (scores.logits[0].argmax(1) > 0).nonzero()[:, 0]
    if not len(buyers):
        return no_steps(len(spend)), spend
    logits, choice = on_grid(package, inputs.take(buyers), scores.logits[:, buyers])
    return scattered(steps_of(logits, choice, spend[buyers], package.prices), buyers, len(spend)), spend


def on_grid(package: PolicyPackage, inputs: DecisionInputs, at_lowest: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [G, N, P] on the package's grid and choices [G, N]; `at_lowest` [1, N, P] has the last price's.

    All customers are asked at every eighth price. The prices between two of these are asked of those alone whose choice
    differs there; for all others the logits of the dearer price stand in. The steps are therefore those of the whole
    grid, unless a policy changes its choice and changes back within eight prices.
    """
    last = len(package.prices) - 1
    coarse = list(range(0, last, STRIDE))
    logits = at_lowest.new_empty(last + 1, *at_lowest.shape[1:])
    choice = torch.empty(logits.shape[:2], dtype=torch.long)
    logits[-1:], choice[-1:] = at_lowest, at_lowest.argmax(2)
    if coarse:
        logits[coarse] = package.score(inputs, package.prices[coarse]).logits
        choice[coarse] = logits[coarse].argmax(2)
    for high, low in zip(coarse, [*coarse[1:], last]):
        between = slice(high + 1, low)
        logits[between], choice[between] = logits[high], choice[high]
        changes = (choice[high] != choice[low]).nonzero()[:, 0]
        if len(changes) and low - high > 1:
            found = package.score(inputs.take(changes), package.prices[between]).logits
            logits[between, changes], choice[between, changes] = found, found.argmax(2)
    return logits, choice


def steps_of(logits: Tensor, choice: Tensor, spend: Tensor, prices: Tensor) -> Increments:
    """Return `compact(demand_curve(...))` [N, K] of choices [G, N] that seldom change: only changes are looked at."""
    cost = spend.gather(1, choice.T)  # [N, G]
    kept = cost.flip(1).cummin(1).values.flip(1)  # the smallest spend at this price and at all lower ones
    counted = torch.where(kept >= cost, cost, 0.0)
    paid = torch.nn.functional.pad(counted.cummax(1).values[:, :-1], (1, 0))
    row, at = (counted > paid).nonzero(as_tuple=True)  # by customer, then by falling price
    if not len(row):
        return no_steps(len(spend))
    new = choice[at, row]
    is_first = torch.cat((torch.ones(1, dtype=torch.bool), row[1:] != row[:-1]))
    old = torch.where(is_first, 0, new.roll(1))
    dearer = (at - 1).clamp_min(0)
    after, before = (logits[g, row, new] - logits[g, row, old] for g in (at, dearer))
    share = torch.where(after > before, after / (after - before).clamp_min(1e-12), 0.0).clamp(0, 1)
    log_price = prices.log()
    crossing = (log_price[at] + share * (log_price[dearer] - log_price[at])).exp()
    place = torch.arange(len(row))
    column = place - torch.where(is_first, place, 0).cummax(0).values
    n, k = len(spend), int(column.max()) + 1
    found = Increments(torch.full((n, k), -torch.inf), torch.zeros(n, k), torch.zeros(n, k, dtype=torch.long))
    for whole, part in zip(found, (crossing, counted[row, at] - paid[row, at], new)):
        whole[row, column] = part
    return found


def scattered(steps: Increments, rows: Tensor, n: int) -> Increments:
    """Return the steps of some rows among n, the others of which have none."""
    k = steps.price.shape[1]
    whole = Increments(torch.full((n, k), -torch.inf), torch.zeros(n, k), torch.zeros(n, k, dtype=torch.long))
    for every, theirs in zip(whole, steps):
        every[rows] = theirs
    return whole


def no_steps(n: int) -> Increments:
    """Return increments of n customers, none of whom is ever bought anything."""
    return Increments(torch.full((n, 1), -torch.inf), torch.zeros(n, 1), torch.zeros(n, 1, dtype=torch.long))


def corrected(spend: Tensor, factor: Tensor, catalogue: Catalogue) -> Tensor:
    """Multiply what pairs give on redemption, [N, P], by a factor [P], up to their face value."""
    if bool((factor == 1).all()):
        return spend
    offer, channel = catalogue.action_codec.decode(torch.arange(spend.shape[1]))
    message = (catalogue.cost[channel] * (offer > 0)).to(spend)
    face = catalogue.value[offer].to(spend)
    return torch.minimum((spend - message).clamp_min(0) * factor.to(spend), face) + message


def best_refused(
    package: PolicyPackage, customers: Customers, scored: Scored, price: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair that each customer would be sent at a price if no rule stood against it, and the rule that does.

    Both are int64 [N]: a flat action, 0 where the rules allow the pair, and an index into RuleNames.
    """
    action = torch.zeros(len(customers), dtype=torch.long)
    if price == np.inf:  # without money the policy would send nothing
        return action.numpy(), np.zeros(len(customers), dtype=np.int64)
    valid = package.catalogue.valid.flatten()
    at = torch.tensor([price], dtype=torch.float32)
    at = at.clamp(float(package.prices[-1]), float(package.prices[0])) if package.observes_price else at
    for rows, memory in scored.memory:
        if len(rows):
            inputs = inputs_of(package, customers, torch.from_numpy(rows), memory)
            every = valid.expand_as(inputs.action_mask).contiguous()
            scores = package.score(inputs._replace(action_mask=every), at)
            logits = scores.logits[0]
            if not package.observes_price:
                logits = logits + at * (scores.spend - corrected(scores.spend, scored.factor, package.catalogue))
            best = logits.argmax(1)
            action[rows] = torch.where(inputs.action_mask.gather(1, best[:, None])[:, 0], 0, best)
    policy = customers.contact_policy
    rule = RuleNames(policy).refusing(policy, customers.options, customers.subscribed, action)
    return action.numpy(), rule

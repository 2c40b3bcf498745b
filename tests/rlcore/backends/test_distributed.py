"""Two processes against one with the customers of both: PPO, PPO-KL, dual bound, clearing, to float tolerance."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import script_runner
from configs import load
from envs.offers.planning.distributed_clearing import clear_together
from envs.offers.planning.dynamic_program import no_contact_values
from envs.offers.planning.knapsack import Increments, clear
from envs.offers.planning.lagrangian_bound import dual, single_process
from envs.offers.world.customers import CustomerState
from rlcore.backends import distributed
from rlcore.ppo import PPO
from rlcore.rollout import EpisodicReturn
from tiny_email_trainer import trainer
from toy_envs import Bandit, make_ppo, part, train

SIZE, AGENTS, ITERATIONS, MINIBATCHES, CUSTOMERS = 2, 24, 3, 3, 6
SEED = 5
SETTINGS = {"minibatches": MINIBATCHES, "center_reward": True, "epochs": 3}
CASES = {
    "minibatch": {"norm_adv": "minibatch"},
    "batch": {"norm_adv": "batch"},
    "stopped early": {"norm_adv": "minibatch", "target_kl": 1e-5},
}


def make(env, iterations, case):
    """PPO with all that processes must agree on: scales of observations and returns, redemption model, KL schedule."""
    return make_ppo(
        env,
        iterations,
        seed=SEED,
        **SETTINGS,
        **CASES[case],
        network={"normalize_obs": True, "first_bias": 0.0},
        auxiliary=part("auxiliary/redemption_model"),
        lr_schedule=part("lr_schedule/adaptive_kl", target=1e-4),
    )


def learned(ppo, log):
    return {
        "weights": ppo.network.state_dict(),
        "spend": ppo.auxiliary.net.state_dict(),
        "log": log.rows,
        "lr": ppo.lr,
        "kl": ppo.kl,
        "scale": {k: v for k, v in ppo.reward_normalizer.state_dict().items() if k != "return_so_far"},
    }


def market():
    """A few customers under a budget that binds in every week, and an offer with a stock."""
    env = load("offers_full_information", torch.device("cpu"), 0, population={"reference_size": 500})
    world = env.world.to("cpu", torch.float64)
    sample = env.population.draw(CUSTOMERS, torch.Generator().manual_seed(1), "test")
    c = world.inhabit(sample.customers)
    stock = torch.full_like(world.catalogue.value, torch.inf)
    stock[-1] = 0.2
    return world, c, sample.state, env.budget, stock


def solve(world, c, start, budget, stock, total):
    """The dual without kept tables; its numbers."""
    amounts = budget.weekly_amounts(c, world, None, start, total=total)
    bound = dual(c, world, None, start, amounts, stock, first_price=3.0, tolerance=1e-4, max_evaluations=5, total=total)
    value, none = torch.tensor([bound.value, bound.none], dtype=torch.float64)
    return {
        "value": value,
        "none": none,
        "prices": bound.prices,
        "gain": bound.gain,
        "scarcity": bound.scarcity,
        "spend": bound.spend,
        "taken": bound.taken,
        "budget": amounts,
    }


def steps(kind, n=40, k=4):
    """Steps of n customers, prices falling along rows; `ties` have few prices and spends, so that many are equal."""
    g = torch.Generator().manual_seed(3)
    price = torch.rand(n, k, generator=g, dtype=torch.float64) * 4 - 1
    spend = torch.rand(n, k, generator=g, dtype=torch.float64)
    if kind == "ties":
        price, spend = (2 * price).round() / 2, (4 * spend).ceil() / 4
    price = price.sort(1, descending=True).values
    return Increments(
        torch.where(torch.rand(n, k, generator=g) < 0.3, -torch.inf, price).cummin(1).values,
        spend,
        torch.randint(30, (n, k), generator=g),
    )


def episodes():
    """Rewards and ends of episodes [8, 2 · SIZE]: the first process has other numbers of ends than the second."""
    ends = [(1, 3), (2, 0), (3, 0), (3, 2), (3, 3), (6, 1)]  # (step, agent); in the last two steps the first alone
    reward, done = torch.arange(32.0).view(8, 4).square(), torch.zeros(8, 4, dtype=torch.bool)
    done[tuple(zip(*ends))] = True
    return reward.split(2), done.split(2)


BUDGETS = [0.0, 3.0, 17.25, 1e9]


def mails():
    """A rollout of the text loop, of mails of unequal length."""
    made = trainer("algo.minibatches=1", "algo.epochs=2", "algo/kl_controller=adaptive")
    rollout = made.collect()
    return made, rollout


def follow(made, rollout, rows):
    """Take the gradient steps of some of a rollout's mails."""
    some = replace(
        rollout,
        mails=rollout.mails.select(rows),
        score=rollout.score[rows],
        log_prob=rollout.log_prob[rows],
        reference_log_prob=rollout.reference_log_prob[rows],
        value=rollout.value[rows],
    )
    batch = made.compute_advantages(some)
    made.kl_controller.update(some.kl_to_reference(), mails=made.steps_per_iteration)
    metrics = made.update(batch)
    return {"weights": made.policy.state_dict(), "metrics": metrics, "coef": made.kl_controller.coef}


def work(rank, folder, port):
    """The work of one of two processes."""
    torch.set_num_threads(1)
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": str(SIZE),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent has the store, as torchrun does
    }
    found = {}
    made, rollout = mails()  # all of them, while alone
    made.batch = len(rollout.score)
    with distributed.process_group(torch.device("cpu")):
        for case in CASES:
            ppo = make(Bandit(AGENTS, distributed.rank_seed(SEED)), SIZE * ITERATIONS, case)
            found[case] = learned(ppo, train(ppo))
        stopped = make(Bandit(AGENTS, distributed.rank_seed(SEED)), SIZE * ITERATIONS, "minibatch")
        resumed = make(Bandit(AGENTS, 99), SIZE * ITERATIONS, "minibatch")
        train(stopped, should_stop=lambda: rank == 1 and stopped.iteration == 1)  # one is told to, both stop
        state = {
            **stopped.state_dict(),
            "own": distributed.gather_objects({key: stopped.state_dict()[key] for key in PPO.sharded}),
        }
        found["stopped"] = stopped.iteration, len(state["own"])
        resumed.load_state_dict(state)
        train(resumed)
        found["resumed"] = resumed.network.state_dict()
        half = distributed.per_process(len(rollout.score), "mails")
        found["mails"] = follow(made, rollout, slice(rank * half, (rank + 1) * half))
        world, c, start, budget, stock = market()
        half = distributed.per_process(CUSTOMERS, "customers")
        rows = slice(rank * half, (rank + 1) * half)
        found["dual"] = solve(
            world, c[rows], CustomerState(*(x[rows] for x in start)), budget, stock, distributed.all_reduce_sum
        )
        for kind in ("distinct", "ties"):
            some = steps(kind)
            own = Increments(*(x.chunk(SIZE)[rank] for x in some))
            found[kind] = [clear_together(own, torch.tensor(budget, dtype=torch.float64)) for budget in BUDGETS]
        episodic, own = EpisodicReturn(2, torch.device("cpu")), slice(2 * rank, 2 * rank + 2)
        found["episodic"] = [episodic.update(reward[:, own], done[:, own]) for reward, done in zip(*episodes())]
        found["gathered"] = distributed.gather_objects(rank)
        found["any"] = (
            distributed.all_reduce_any(rank == 1, torch.device("cpu")),
            distributed.all_reduce_any(False, torch.device("cpu")),
        )
        with pytest.raises(ValueError, match="env.num_agents: 7 can't be shared equally by 2"):
            distributed.per_process(7, "env.num_agents")
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of two processes, started once for all tests."""
    folder = tmp_path_factory.mktemp("both")
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    running = [script_runner.start(work, rank, str(folder), store.port) for rank in range(SIZE)]
    for process in running:
        process.join(script_runner.PATIENCE)
    assert [process.exitcode for process in running] == [0] * SIZE
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


class Joined(Bandit):
    """The agents of both processes, drawn as these draw them."""

    def __init__(self):
        self.generators = [
            torch.Generator().manual_seed(1000 + SEED + rank * distributed.SEED_STRIDE) for rank in range(SIZE)
        ]
        super().__init__(SIZE * AGENTS)

    def fresh(self):
        return torch.cat([Bandit.fresh(SimpleNamespace(num_agents=AGENTS, generator=g)) for g in self.generators])


class Streams:
    """The random streams of both processes, for what draws from one."""

    def __init__(self):
        self.parts = [
            torch.Generator().manual_seed(2 * (SEED + rank * distributed.SEED_STRIDE) + 1) for rank in range(SIZE)
        ]

    def rand(self, shape, **_):
        steps, agents = shape
        return torch.cat([RAND(steps, agents // SIZE, generator=g) for g in self.parts], 1)

    def randperm(self, n, **_):
        """The minibatches of both, joined; an agent of the second stands behind all of the first in every step."""
        orders = [
            torch.stack(((own := RANDPERM(n // SIZE, generator=g)) // AGENTS, own % AGENTS + rank * AGENTS))
            for rank, g in enumerate(self.parts)
        ]
        parts = [(row[0] * SIZE * AGENTS + row[1]).chunk(MINIBATCHES) for row in orders]
        return torch.cat([x for minibatch in zip(*parts) for x in minibatch])


RAND, RANDPERM = torch.rand, torch.randperm


def near(a, b, **tolerance):
    torch.testing.assert_close(a, b, **{"rtol": 1e-4, "atol": 2e-6, **tolerance})


def drawn_by_process(name):
    """torch's function of that name, which draws from Streams as well."""
    plain = getattr(torch, name)

    def drawn(*size, generator=None, **how):
        if isinstance(generator, Streams):
            return getattr(generator, name)(*size)
        return plain(*size, generator=generator, **how)

    return drawn


@pytest.mark.parametrize("case", CASES)
def test_ppo_of_two_processes_is_that_of_one_with_the_agents_of_both(both, case, monkeypatch):
    ppo = make(Joined(), ITERATIONS, case)
    ppo.generator = Streams()
    for name in ("rand", "randperm"):
        monkeypatch.setattr(torch, name, drawn_by_process(name))
    log = train(ppo)
    whole = learned(ppo, log)
    assert len(log.rows) == ITERATIONS and ppo.lr != ppo.initial_lr
    for one in both:
        for name in ("weights", "spend", "scale", "lr", "kl"):
            near(one[case][name], whole[name])
        for ours, row in zip(one[case]["log"], log.rows, strict=True):
            near(ours, row, rtol=1e-3, atol=1e-5)


def test_the_episodic_return_is_the_mean_over_the_episodes_of_both(both):
    running, expected = [0.0] * 4, []
    for rewards, dones in zip(*episodes()):
        ended = []
        for reward, done in zip(rewards.tolist(), dones.tolist()):
            for agent in range(4):
                running[agent] += reward[agent]
                if done[agent]:
                    ended.append(running[agent])
                    running[agent] = 0.0
        expected.append(sum(ended) / len(ended) if ended else math.nan)
    assert math.isnan(expected[2])
    for one in both:
        assert [x.item() for x in one["episodic"]] == pytest.approx(expected, nan_ok=True)


def test_one_that_is_told_to_stop_stops_both_and_both_go_on_as_if_nothing_were(both):
    assert [one["stopped"] for one in both] == [(1, 2), (1, 1)]  # the first has the states of both
    for one in both:
        near(one["resumed"], one["minibatch"]["weights"], rtol=0, atol=0)


def test_ppo_kl_of_two_processes_is_that_of_one_with_the_mails_of_both(both):
    made, rollout = mails()
    tokens = rollout.mails.response_mask.sum(1).chunk(SIZE)
    assert tokens[0].sum() != tokens[1].sum()  # a mean of means would be another
    whole = follow(made, rollout, slice(None))
    for one in both:
        for name in whole:
            near(one["mails"][name], whole[name])


def test_the_dual_over_shared_customers_is_that_over_all(both):
    world, c, start, budget, stock = market()
    whole = solve(world, c, start, budget, stock, single_process)
    gain = whole.pop("gain")
    for rank, one in enumerate(both):
        near(one["dual"].pop("gain"), gain.chunk(SIZE)[rank], rtol=1e-9, atol=1e-9)
        near(one["dual"], whole, rtol=1e-9, atol=1e-9)
    amounts = budget.weekly_amounts(c, world, no_contact_values(c, world), start)
    kept = dual(
        c, world, no_contact_values(c, world), start, amounts, stock, first_price=3.0, tolerance=1e-4, max_evaluations=5
    )
    assert kept.value == pytest.approx(whole["value"].item(), rel=1e-12) and kept.values is not None


@pytest.mark.parametrize("kind", ["distinct", "ties"])
def test_clearing_shared_customers_is_clearing_all(both, kind):
    for i, budget in enumerate(BUDGETS):
        action, price = clear(steps(kind), torch.tensor(budget, dtype=torch.float64))
        assert torch.equal(torch.cat([one[kind][i][0] for one in both]), action)
        assert [one[kind][i][1].item() for one in both] == [price.item()] * SIZE
        own, same = clear_together(steps(kind), torch.tensor(budget, dtype=torch.float64))
        assert torch.equal(own, action) and same == price


def test_the_first_process_gathers_and_one_that_stops_stops_all(both):
    assert both[0]["gathered"] == [0, 1] and [one["any"] for one in both] == [(True, False)] * SIZE

"""All modes give one result: compiled and recorded functions equal eager ones, and never wait for the device."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from comparisons import identical
from configs import composed
from rlcore.backends.accelerate import accelerate
from rlcore.backends.cuda_graphs import WARM_UP_CALLS, CUDAGraphCallable
from toy_envs import train


@pytest.mark.long
def test_a_recorded_function_is_the_function(tape):
    total = torch.zeros(3)

    def function(x, twice):
        total.add_(x)
        return {"sum": total * (2 if twice else 1), "none": None}

    captured, expected = CUDAGraphCallable(function), torch.zeros(3)
    for k in range(12):
        x = torch.full((3,), float(k))
        expected = expected + x
        assert torch.equal(captured(x, k % 2 == 0)["sum"], expected * (2 if k % 2 == 0 else 1))
    assert len(tape) == 2 and WARM_UP_CALLS < 6  # one for each value of what is no tensor


def test_what_asks_the_host_is_not_recorded(tape):
    captured = CUDAGraphCallable(lambda x: x[x > 0])
    with pytest.raises(AssertionError):
        for _ in range(WARM_UP_CALLS + 1):
            captured(torch.ones(2))


@pytest.mark.long
def test_what_a_recorded_function_reads_must_stay(tape):
    """On a GPU the freed memory would belong to another tensor, or to none."""

    def of_a_season():
        return CUDAGraphCallable(lambda x: x + season["table"])

    season = {"table": torch.ones(3)}
    kept, lost = of_a_season(), of_a_season()
    for _ in range(WARM_UP_CALLS + 2):
        assert torch.equal(kept(torch.ones(3)), torch.full((3,), 2.0))
    for _ in range(WARM_UP_CALLS + 1):
        lost(torch.ones(3))
    season["table"] = torch.ones(3)
    with pytest.raises(
        AssertionError, match="add.* of .*test_cuda_graphs.py:[0-9]+ reads torch.float32 .3., which nobody has kept"
    ):
        lost(torch.ones(3))


def trained(env, mode, device):
    """A short training: redrawn customers, redemption model, scaled rewards; a student has an untrained teacher."""
    small = {
        "env=offers": ["env.num_agents=24", "algo.total_steps=2016", "algo.network.hidden=[8]"],
        "env=offers_sequential": ["env.num_agents=8", "algo.total_steps=448", "algo.num_steps=8", "algo.minibatches=2"],
    }
    asked = f"env={env}".split()
    cfg = composed(*small[asked[0]], *asked)
    made = instantiate(cfg.env, _convert_="all")(device, 0)
    teacher = {} if cfg.algo.get("teacher") is None else {"teacher": untrained_teacher}
    ppo = accelerate(instantiate(cfg.algo, _convert_="all")(made, 0, **teacher), mode)
    return ppo, train(ppo)


def untrained_teacher(env):
    """Make the policy of CQL before any training."""
    return instantiate(composed("algo=cql", "env=offers").algo, _convert_="all")(env, 0).policy


@pytest.mark.long
@pytest.mark.parametrize(
    "env",
    [
        "offers algo.norm_adv=batch",
        "offers env/observation=history env/contact_rules=caps",
        "offers algo=distilled_ppo algo.distill_iterations=2 algo.center_reward=true",
        "offers_sequential",
    ],
)
def test_ppo_recorded_learns_as_ppo_does(tape, env):
    """To the last bit, over iterations before and after the recording."""
    (eager, log), (recorded, other) = (trained(env, mode, torch.device("cpu")) for mode in ("eager", "cudagraph"))
    assert len(log.rows) > WARM_UP_CALLS + 2 and len(tape) >= 3
    for a, b in zip(eager.network.state_dict().values(), recorded.network.state_dict().values()):
        assert torch.equal(a, b)
    assert identical(log.rows, other.rows)
    for name in ("losses/value_loss", "rollout/reward"):
        assert len(set(log[name])) > WARM_UP_CALLS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("env", ["offers", "offers_sequential"])
def test_ppo_on_a_gpu_learns_recorded_as_eagerly_and_never_waits_for_the_device(env):
    (eager, log), (recorded, other) = (trained(env, mode, torch.device("cuda")) for mode in ("eager", "cudagraph"))
    for name in ("losses/policy_loss", "losses/value_loss", "rollout/reward"):
        assert log[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4)
    for ppo in (eager, recorded):
        rollout = ppo.collect()
        torch.cuda.set_sync_debug_mode("error")
        try:
            if env == "offers_sequential":  # reset draws customers, which may wait
                rollout = ppo.collect()
            ppo.update(ppo.compute_advantages(rollout))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_mode_that_is_none_is_one_line():
    with pytest.raises(ValueError, match="execution: expected 'eager', 'compile' or 'cudagraph'"):
        accelerate(None, "fastest")

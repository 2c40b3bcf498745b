"""PPO on toys with known answers: ratios, bootstraps, schedules, resuming, learning, and invariances."""

from __future__ import annotations

import io
import shutil

import pytest
import torch

import reference_rl as reference
from comparisons import identical, weights
from rlcore import losses
from toy_envs import Bandit, Chain, Endless, make_ppo, part, train

HEADS = pytest.mark.parametrize("heads", ["independent", "joint"])


def steps_taken(ppo) -> int:
    """Count the optimiser's steps."""
    return int(next(iter(ppo.optimizer.state.values()))["step"])


@pytest.mark.slow
# ── one iteration ───────────────────────────────────────────────────────────────────────────────────────────────────
@HEADS
@pytest.mark.parametrize("env", [Bandit, Chain])
def test_the_ratio_is_one_before_the_first_step(env, heads):
    env = env(64)  # one step a rollout: collect and update then multiply matrices of one shape, and agree to the bit
    ppo = make_ppo(env, 12, num_steps=1, epochs=1, minibatches=1, network={"heads": heads, "normalize_obs": True})
    log = train(ppo)
    assert log["losses/approx_kl"] == log["losses/old_approx_kl"] == log["losses/clipfrac"] == [0.0] * 12
    assert ppo.network.normalize.count == 12 * 64 and env.invalid == 0


@pytest.mark.parametrize("env", [Chain, Endless])
def test_compute_advantages_equals_the_scalar_reference(env):
    ppo = make_ppo(env(6), 1, num_steps=13, minibatches=1, gamma=0.9, gae_lambda=0.8, norm_adv="none")
    rollout = ppo.collect()
    batch = ppo.compute_advantages(rollout)
    reward, value = ppo.reward_normalizer(rollout.reward), ppo.network.value(rollout.obs)
    following = ppo.network.value(torch.cat((rollout.obs[1:], rollout.last_obs[None])))
    if env.can_truncate:
        assert rollout.truncated.any()
        following = torch.where(rollout.truncated, ppo.network.value(rollout.final_obs), following)
    columns = (reward, value, following, rollout.terminated, rollout.terminated | rollout.truncated)
    advantage = torch.tensor(reference.gae(*(x.tolist() for x in columns), 0.9, 0.8)).flatten()
    torch.testing.assert_close(batch.advantage, advantage, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch.value, value.flatten())
    torch.testing.assert_close(batch.target, advantage + value.flatten(), atol=1e-5, rtol=1e-5)
    returns, _ = reference.discounted(rollout.reward.tolist(), columns[-1].tolist(), 0.9, [0.0] * 6)
    torch.testing.assert_close(reward, rollout.reward / torch.tensor(returns).std(correction=0))


def losses_found(monkeypatch):
    """Keep the losses that PPO back-propagates."""
    found, ppo_loss = [], losses.ppo

    def keep(**inputs):
        loss, metrics = ppo_loss(**inputs)
        found.append(loss)
        return loss, metrics

    monkeypatch.setattr(losses, "ppo", keep)
    return found


def test_the_loss_equals_the_scalar_reference_after_a_step(monkeypatch):
    ppo = make_ppo(Bandit(64), 1, clip=0.05, clip_value=0.1, vf_coef=0.7, ent_coef=0.3, optimizer={"lr": 0.02})
    rollout = ppo.collect()
    batch = ppo.compute_advantages(rollout)
    ppo.update(batch)
    found = losses_found(monkeypatch)
    metrics = ppo.compute_gradients(batch)
    (loss,) = found
    mask = rollout.action_mask.flatten(0, 1)
    decides = mask.flatten(1).sum(-1) > 1
    policy = ppo.network.distribution(batch.obs, mask)
    log_ratio = (policy.log_prob(batch.action) - batch.log_prob)[decides].tolist()
    advantage = batch.advantage[decides].double()
    white = ((advantage - advantage.mean()) / advantage.std(correction=0)).tolist()
    value = (x.tolist() for x in (ppo.network.value(batch.obs), batch.value, batch.target))
    expected = (
        reference.policy_loss(log_ratio, white, 0.05)
        + 0.7 * reference.value_loss(*value, 0.1)
        - 0.3 * reference.mean(policy.entropy()[decides].tolist())
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4) and metrics["clipfrac"] > 0.05 and metrics["approx_kl"] > 0


def test_gradients_are_clipped_together():
    ppo = make_ppo(Bandit(32), 1, max_grad_norm=1e-3)
    log = train(ppo)
    norm = torch.cat([p.grad.flatten() for p in ppo.network.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2) and log["losses/grad_norm"][0] > 0.01


def test_every_sample_is_learned_from_once_an_epoch():
    ppo = make_ppo(Bandit(30), 1, epochs=3, minibatches=5)
    seen, compute_gradients = [], ppo.compute_gradients
    ppo.compute_gradients = lambda batch: (seen.append(batch.obs), compute_gradients(batch))[1]
    rollout = ppo.collect()
    ppo.update(ppo.compute_advantages(rollout))
    epochs = [torch.cat(seen[i : i + 5]) for i in (0, 5, 10)]
    for epoch in epochs:
        assert torch.equal(epoch.sort(0).values, rollout.obs.flatten(0, 1).sort(0).values)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_forced_decisions_teach_the_value_and_not_the_policy():
    env = Bandit(32)
    env.forced = 1.0
    ppo = make_ppo(env, 3, ent_coef=0.1)
    before = {name: p.clone() for name, p in ppo.network.named_parameters()}
    log = train(ppo)
    for name, p in ppo.network.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("actor")
    assert log["losses/policy_loss"] == log["losses/entropy"] == [0.0] * 3


@pytest.mark.parametrize("norm_adv", ["minibatch", "batch", "none"])
def test_advantage_normalisation(norm_adv, monkeypatch):
    ppo = make_ppo(Bandit(64), 1, norm_adv=norm_adv, norm_reward=False)
    batch = ppo.compute_advantages(ppo.collect())
    inside = batch.advantage[batch.has_choice]
    assert (inside.mean().abs() < 1e-5 and (inside.std() - 1).abs() < 1e-2) == (norm_adv == "batch")
    found = losses_found(monkeypatch)
    ppo.compute_gradients(batch)
    ppo.compute_gradients(batch._replace(advantage=9 * batch.advantage + 4))
    loss, scaled = found
    assert torch.allclose(loss, scaled, atol=1e-5) == (norm_adv == "minibatch")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"minibatches": 7}, "^algo.minibatches: expected a divisor of .*, got 7"),
        ({"norm_adv": "all"}, "^algo.norm_adv: .*'all'"),
        ({"norm_reward": False, "center_reward": True}, "^algo.center_reward"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_ppo(Bandit(32), 1, **changes)
    with pytest.raises(ValueError, match="execution"):
        make_ppo(Bandit(32), 1, mode="jit")


def test_rewards_are_not_centred_where_actions_decide_how_long_an_episode_lasts():
    centred = {"center_reward": True, "norm_reward": True}
    assert make_ppo(Bandit(32), 1, **centred).reward_normalizer.rewards is not None  # every episode has one step
    with pytest.raises(ValueError, match="^algo.center_reward: expected false in this environment, where actions"):
        make_ppo(Endless(32), 1, **centred)


@pytest.mark.long
# ── truncation, schedules, stopping ─────────────────────────────────────────────────────────────────────────────────
def test_truncation_bootstraps_from_the_final_observation():
    ppo = make_ppo(Endless(16), 100, num_steps=8, gamma=0.8, norm_reward=False, epochs=4, max_grad_norm=10.0)
    train(ppo)
    values = ppo.network.value(torch.eye(2)).tolist()
    assert values == pytest.approx([0.0, 5.0], abs=0.01)


def test_linear_schedule_over_a_run():
    log = train(make_ppo(Bandit(8), 5))
    assert log["charts/learning_rate"] == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])
    ppo = make_ppo(Bandit(8), 3, lr_schedule=None)
    assert train(ppo)["charts/learning_rate"] == pytest.approx([0.01] * 3)


def test_the_optimiser_follows_the_schedule():
    ppo = make_ppo(Bandit(8), 3, lr_schedule=part("lr_schedule/adaptive_kl", low=0.0, high=0.0))
    before = weights(ppo)
    train(ppo)
    assert torch.equal(weights(ppo), before) and steps_taken(ppo) == 3 * 2 * 2


def test_adaptive_schedule_reads_the_kl_of_the_iteration_before():
    log = train(
        make_ppo(Bandit(32), 6, lr_schedule=part("lr_schedule/adaptive_kl", target=1e-9), optimizer={"lr": 0.003})
    )
    assert log["charts/learning_rate"] == pytest.approx([0.003 / 1.5**i for i in range(6)])


def test_target_kl_stops_an_iteration_early():
    stopped, free = (make_ppo(Bandit(32), 3, epochs=4, target_kl=kl) for kl in (1e-9, 1e9))
    train(stopped), train(free)
    assert steps_taken(stopped) == 3 * 1 * 2 and steps_taken(free) == 3 * 4 * 2


@pytest.mark.long
def test_entropy_bonus_is_annealed_and_raises_entropy():
    low, high = (train(make_ppo(Bandit(32), 30, epochs=4, ent_coef=c, ent_coef_final=c)) for c in (0.0, 1.0))
    assert high["losses/entropy"][-1] > low["losses/entropy"][-1] + 0.2
    ppo = make_ppo(Bandit(8), 4, ent_coef=0.8, ent_coef_final=0.0)
    train(ppo)
    assert ppo.entropy_coef.item() == pytest.approx(0.2)


# ── repeatability ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_seed_decides():
    one, same, other = (make_ppo(Bandit(16), 2, seed=seed) for seed in (0, 0, 1))
    actors = [make_ppo(Bandit(16), 1, seed=seed) for seed in (0, 1)]
    actors[1].network.load_state_dict(actors[0].network.state_dict())
    rollouts = [ppo.collect() for ppo in actors]  # the world and the weights are the same, the draws are not
    assert torch.equal(rollouts[0].obs, rollouts[1].obs) and not torch.equal(rollouts[0].action, rollouts[1].action)
    assert torch.equal(weights(one), weights(same)) and not torch.equal(weights(one), weights(other))
    logs = [train(ppo).rows for ppo in (one, same, other)]
    assert torch.equal(weights(one), weights(same)) and logs[0] == logs[1] and logs[0] != logs[2]


def test_a_resumed_run_takes_the_optimisers_options_that_it_is_given():
    first = make_ppo(Bandit(8), 2, lr_schedule=None)
    train(first)
    changed = {"lr": 1e-4, "betas": [0.5, 0.6], "eps": 0.1}
    resumed = make_ppo(Bandit(8), 3, lr_schedule=None, optimizer=changed)
    resumed.load_state_dict(first.state_dict())
    (group,) = resumed.optimizer.param_groups
    assert (list(group["betas"]), group["eps"]) == ([0.5, 0.6], 0.1) and group["lr"] is resumed.lr
    assert steps_taken(resumed) == steps_taken(first) > 0  # the moments are the checkpoint's
    assert train(resumed)["charts/learning_rate"] == pytest.approx([1e-4])


@pytest.mark.slow
@HEADS
def test_a_resumed_run_equals_an_uninterrupted_one(heads):
    def make(seed):
        return make_ppo(
            Chain(16, seed),
            4,
            seed=seed,
            num_steps=3,
            minibatches=4,
            auxiliary=part("auxiliary/redemption_model"),
            network={"heads": heads, "normalize_obs": True},
            lr_schedule=part("lr_schedule/adaptive_kl", target=1e-4),
        )

    file, whole, stopped, resumed = io.BytesIO(), make(0), make(0), make(7)
    log = train(whole)
    train(stopped, save=lambda: torch.save(stopped.state_dict(), file), should_stop=lambda: stopped.iteration == 2)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert stopped.iteration == resumed.iteration == 2 and not torch.equal(weights(resumed), weights(whole))
    assert identical(train(resumed).rows, log.rows[2:])
    assert identical(resumed.state_dict(), whole.state_dict())


def test_evaluating_and_logging_change_nothing():
    plain, watched = make_ppo(Bandit(16), 4), make_ppo(Bandit(16), 4, eval_every=1, checkpoint_every=1)
    other = Bandit(16, seed=5)

    def evaluate() -> dict:
        obs, mask = other.reset()
        step = other.step(watched.network.distribution(obs, mask).sample(torch.rand(16)))
        return {"eval/reward": step.reward.mean()}

    log = train(watched, save=watched.state_dict, validate=evaluate)
    train(plain)
    assert torch.equal(weights(plain), weights(watched)) and len(log["eval/reward"]) == 4
    assert identical(plain.state_dict(), watched.state_dict())


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler")
def test_compiled_equals_eager():
    eager, compiled = (make_ppo(Chain(16), 1, mode=mode) for mode in ("eager", "compile"))
    logs = train(eager), train(compiled)
    assert torch.equal(eager.env.state, compiled.env.state)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)
    assert logs[1].rows[0] == pytest.approx(logs[0].rows[0], rel=1e-3, abs=1e-5)


@pytest.mark.long
# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────────
@HEADS
def test_learns_the_chain(heads):
    env = Chain(64)
    log = train(ppo := make_ppo(env, 40, epochs=4, minibatches=4, network={"heads": heads}, ent_coef=0.01))
    assert 5 * log["rollout/reward"][0] < 1.5 and 5 * log["rollout/reward"][-1] > 0.95 * env.best
    assert env.invalid == 0
    obs, mask = env.reset()  # greedily, it is perfect
    total = 0.0
    for _ in range(5):
        step = env.step(ppo.network.distribution(obs, mask).mode())
        obs, mask, total = step.obs, step.action_mask, total + step.reward
    assert (total == env.best).all() and env.invalid == 0


@pytest.mark.long
@pytest.mark.parametrize("heads, share", [("independent", 0.93), ("joint", 0.97)])
def test_learns_the_masked_bandit(heads, share):
    env = Bandit(128)
    log = train(make_ppo(env, 40, epochs=4, minibatches=4, network={"heads": heads, "normalize_obs": True}))
    best = env.best()
    assert log["rollout/reward"][0] < 0.6 * best and sum(log["rollout/reward"][-5:]) / 5 > share * best
    assert env.invalid == 0


@pytest.mark.slow
def test_the_redemption_model_learns_beside_the_policy():
    log = train(ppo := make_ppo(Chain(32), 20, auxiliary=part("auxiliary/redemption_model", hidden=[16], lr=0.03)))
    assert log["losses/spend"][-1] < 0.5 * log["losses/spend"][0]
    # annealed like the policy's
    assert float(ppo.auxiliary.optimizer.param_groups[0]["lr"]) == pytest.approx(0.03 / 20)

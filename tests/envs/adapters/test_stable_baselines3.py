"""Against Stable-Baselines3: its checker, its VecEnv contract, MaskablePPO's masks, and the numbers of its PPO."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toy_envs import make_ppo

stable_baselines3 = pytest.importorskip("stable_baselines3")
sb3_contrib = pytest.importorskip("sb3_contrib")

from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from envs.adapters.gymnasium_offers import OffersEnv, sequential
from envs.adapters.stable_baselines3 import OffersVecEnv
from rlcore import losses
from rlcore.returns import gae, whiten
from scripts.benchmarks.speed.scalar_env import ScalarToy

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = ["env.customers=2", "env.penalty=-5"]  # seasons of 24 steps


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("overrides", [[], ["env/world=sequential"], ["env.penalty=-5"]])
def test_its_checker_passes(overrides, flat):
    check_env(OffersEnv([*overrides, "env.customers=3"], flat=flat))


@pytest.mark.parametrize("overrides", [SHORT, ["env/world=sequential", "env.customers=2"]])
def test_the_vec_env_equals_its_own_of_single_environments(overrides):
    ours = OffersVecEnv(sequential(3, 0, overrides), flat=False)
    theirs = DummyVecEnv([lambda: OffersEnv(overrides)] * 3)
    ours.seed(5)
    theirs.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    ours.action_space.seed(0)
    for _ in range(60):
        actions = np.stack([ours.action_space.sample() for _ in range(3)])
        (*a, infos), (*b, others) = ours.step(actions), theirs.step(actions)
        for x, y in zip(a, b):
            np.testing.assert_allclose(x, y, atol=1e-6)
        for done, info, other in zip(a[2], infos, others):
            assert done == ("terminal_observation" in info)
            if done:
                np.testing.assert_allclose(info["terminal_observation"], other["terminal_observation"], atol=1e-6)
                assert info["TimeLimit.truncated"] is other["TimeLimit.truncated"] is False


def test_maskable_ppo_trains_and_sends_nothing_forbidden():
    env = sequential(4, 0, ["env.customers=3", "env.weekly_budget=0.7"])
    vec, asked = OffersVecEnv(env, flat=True), []
    step = env.step
    env.step = lambda action: (asked.append(env.reset()[1][(torch.arange(4), *action.T)].all().item()), step(action))[1]
    model = sb3_contrib.MaskablePPO("MlpPolicy", vec, n_steps=16, batch_size=32, n_epochs=1, device="cpu")
    model.learn(128)
    assert len(asked) == 32 and all(asked)


def test_the_benchmarks_scalar_world_is_the_same_world():
    env = sequential(1, 0, ["env.customers=5", "env.penalty=-5"])
    scalar = ScalarToy(env)
    scalar.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(1000):
        action = generator.integers((6, 5))
        u = env.inputs.u[0, 0].item()
        scalar.np_random = type(
            "Told", (), {"random": lambda self: u, "standard_normal": lambda self, n, dtype: np.zeros(n)}
        )()
        step = env.step(torch.as_tensor(action)[None])
        obs, reward, terminated, _, _ = scalar.step(action)
        np.testing.assert_allclose(
            step.final_obs[0, -3:-1] if not terminated else [1, 1], obs[-3:-1] if not terminated else [1, 1], atol=1e-6
        )
        np.testing.assert_allclose(step.final_obs[0, -1], obs[-1], atol=1e-6)
        assert abs(step.reward.item() - reward) < 1e-6 and step.terminated.item() == terminated
        if terminated:
            scalar.np_random = np.random.default_rng(0)
            scalar.reset()


# ── the same rollout, the same numbers ──────────────────────────────────────────────────────────────────────────────
class Recorder(Logger):
    """Keeps all records."""

    def __init__(self):
        super().__init__(None, [])


def peer(**options):
    """Their PPO after one rollout of 64 steps in 3 worlds whose seasons end within it."""
    torch.manual_seed(0)
    model = stable_baselines3.PPO(
        "MlpPolicy",
        OffersVecEnv(sequential(3, 0, SHORT), flat=False),
        n_steps=64,
        n_epochs=1,
        batch_size=192,
        gamma=0.97,
        gae_lambda=0.9,
        learning_rate=1e-3,
        device="cpu",
        seed=1,
        ent_coef=0.01,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        **options,
    )
    model.set_logger(Recorder())
    _, callback = model._setup_learn(192, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    return model


def rows(buffer, name: str) -> torch.Tensor:
    """A field of their buffer, [T·N, ...] with time first."""
    x = torch.as_tensor(getattr(buffer, name))
    return x.flatten(0, 1) if x.dim() > 1 else x


def test_advantages_equal_theirs():
    model = peer()
    buffer = model.rollout_buffer
    reward, value = torch.as_tensor(buffer.rewards), torch.as_tensor(buffer.values)
    with torch.no_grad():
        last = model.policy.predict_values(torch.as_tensor(model._last_obs))[:, 0]
    ended = torch.cat(
        (torch.as_tensor(buffer.episode_starts)[1:], torch.as_tensor(model._last_episode_starts)[None])
    ).bool()
    assert ended.any()
    next_value = torch.cat((value[1:], last[None]))
    ours = gae(reward, value, next_value, ended, ended, 0.97, 0.9)
    assert (ours - torch.as_tensor(buffer.advantages)).abs().max() < 1e-5
    assert (ours + value - torch.as_tensor(buffer.returns)).abs().max() < 1e-5


def test_losses_and_advantage_normalisation_equal_theirs():
    model = peer(clip_range=0.05)
    buffer, policy = model.rollout_buffer, model.policy
    with torch.no_grad():  # a policy that has moved since: ratios are not 1, some are clipped
        for x in policy.parameters():
            x.add_(0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    obs, action = rows(buffer, "observations"), rows(buffer, "actions")
    old_log_prob, advantage, target = rows(buffer, "log_probs"), rows(buffer, "advantages"), rows(buffer, "returns")
    with torch.no_grad():
        value, log_prob, entropy = policy.evaluate_actions(obs, action)
    n = len(advantage)
    # They divide by the standard deviation of a sample (n − 1), whiten by that of the batch (n).
    normalised = whiten(advantage) * ((n - 1) / n) ** 0.5
    assert (normalised - (advantage - advantage.mean()) / (advantage.std() + 1e-8)).abs().max() < 1e-5
    ours, metrics = losses.ppo(
        log_prob=log_prob,
        old_log_prob=old_log_prob,
        advantage=normalised,
        entropy=entropy,
        value=value[:, 0],
        old_value=value[:, 0],
        target=target,
        mask=None,
        clip=0.05,
        clip_value=None,
        vf_coef=1.0,
        ent_coef=0.01,
    )
    model.train()
    said = model.logger.name_to_value
    for name, expected in (
        ("policy_loss", said["train/policy_gradient_loss"]),
        ("value_loss", said["train/value_loss"] / 2),
        ("entropy", -said["train/entropy_loss"]),
        ("approx_kl", said["train/approx_kl"]),
        ("clipfrac", said["train/clip_fraction"]),
    ):
        assert abs(metrics[name].item() - expected) < 1e-5, name
    assert 0.05 < metrics["clipfrac"] < 0.95 and abs(ours.item() - said["train/loss"]) < 1e-4


def test_an_update_moves_the_weights_where_theirs_moves_them():
    model = peer(normalize_advantage=False)
    buffer, policy = model.rollout_buffer, model.policy
    ppo = make_ppo(
        sequential(3, 0, SHORT),
        1,
        num_steps=64,
        epochs=1,
        minibatches=1,
        gamma=0.97,
        gae_lambda=0.9,
        norm_adv="none",
        norm_reward=False,
        vf_coef=1.0,
        ent_coef=0.01,
        ent_coef_final=0.01,
        lr_schedule=None,
        network={"hidden": [64, 64], "activation": {"path": "torch.nn.Tanh"}},
        optimizer={"lr": 1e-3},
    )
    pairs = [
        *zip(ppo.network.actor[::2], [*policy.mlp_extractor.policy_net[::2], policy.action_net]),
        *zip(ppo.network.critic[::2], [*policy.mlp_extractor.value_net[::2], policy.value_net]),
    ]
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    before = [ours.weight.clone() for ours, _ in pairs]
    rollout = ppo.collect()
    batch = ppo.compute_advantages(rollout)
    recorded = {
        "obs": "observations",
        "action": "actions",
        "log_prob": "log_probs",
        "value": "values",
        "advantage": "advantages",
        "target": "returns",
    }
    recorded = {ours: rows(buffer, theirs) for ours, theirs in recorded.items()}
    free = torch.ones(192, 6, 5, dtype=torch.bool)  # their policy knows no mask
    batch = batch._replace(
        **{**recorded, "action": recorded["action"].long()}, action_mask=free, has_choice=free[:, 0, 0]
    )
    ppo.update(batch)
    model.train()
    for (ours, theirs), old in zip(pairs, before):
        assert (ours.weight - theirs.weight).abs().max() < 1e-5 and (ours.bias - theirs.bias).abs().max() < 1e-5
        assert (ours.weight - old).abs().max() > 1e-4

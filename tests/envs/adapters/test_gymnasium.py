"""Gymnasium both ways: checked contracts, vectors equal to single environments, truncation, masks, bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load
from toy_envs import make_ppo, train

gymnasium = pytest.importorskip("gymnasium")

from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.adapters.gymnasium_env import GymnasiumEnv
from envs.adapters.gymnasium_evaluation import GymnasiumEvaluator, play_episodes
from envs.adapters.gymnasium_offers import OffersEnv, OffersVectorEnv, sequential
from envs.data_collection import UniformPolicy, rollouts

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
WORLDS = pytest.mark.parametrize(
    "overrides",
    [["env.customers=3"], ["env/world=sequential", "env.customers=3"], ["env.penalty=-5", "env.customers=3"]],
)


TWO_ACTIONS = spaces.Discrete(2)


class Counter(gymnasium.Env):
    """Counts its steps; terminates at 3 and truncates at `limit`. Remembers its actions."""

    def __init__(self, actions=TWO_ACTIONS, limit=99, mask=None):
        self.observation_space, self.action_space = spaces.Box(0, 99, (1, 2), np.float32), actions
        self.limit, self.mask, self.asked = limit, mask, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe()

    def observe(self):
        return np.array([[self.t, 1]], np.float32), {} if self.mask is None else {
            "action_mask": np.array(self.mask, np.int8)
        }

    def step(self, action):
        self.asked.append(action)
        self.t += 1
        obs, info = self.observe()
        return obs, float(self.t), self.t == 3, self.t == self.limit, info


class Watcher(Counter):
    """Observes the first sample of a space."""

    def __init__(self, space):
        super().__init__()
        self.observation_space = space

    def observe(self):
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}


class Turns(Counter):
    """A counter whose two actions take turns: the first may be chosen after an even number of steps."""

    def turn(self):
        return np.array([self.t % 2 == 0, self.t % 2 == 1])

    def observe(self):
        return np.array([[self.t, 1]], np.float32), {"action_mask": self.turn()}


class Asked(Turns):
    """The same, by the method `action_masks`."""

    def action_masks(self):
        return self.turn()

    def observe(self):
        return super().observe()[0], {}


gymnasium.register("test/Turns-v0", entry_point=Turns, disable_env_checker=True)
gymnasium.register("test/Asked-v0", entry_point=Asked, disable_env_checker=True)
gymnasium.register("test/Counter-v0", entry_point=Counter, disable_env_checker=True)
gymnasium.register("test/Watcher-v0", entry_point=Watcher, disable_env_checker=True)


def watcher(space):
    """Two copies of the watcher of a space as a VectorEnv."""
    return GymnasiumEnv(CPU, 0, id="test/Watcher-v0", kwargs={"space": space}, num_agents=2, evaluation=None)


def counter(num_agents=2, **kwargs):
    """Copies of the counter as a VectorEnv."""
    return GymnasiumEnv(CPU, 0, id="test/Counter-v0", kwargs=kwargs, num_agents=num_agents, evaluation=None)


@pytest.mark.long
# ── out ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flat", [False, True])
@WORLDS
def test_gymnasiums_checker_passes(overrides, flat):
    check_env(gymnasium.make("envs.adapters.gymnasium_offers:crm/Offers-v0", overrides=overrides, flat=flat).unwrapped)


@pytest.mark.long
@WORLDS
def test_the_vector_equals_single_environments(overrides):
    vector = OffersVectorEnv(sequential(3, 0, overrides), flat=False)
    singles = SyncVectorEnv([lambda: OffersEnv(overrides)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert vector.single_action_space == singles.single_action_space
    vector.action_space.seed(0)
    for seed in (7, None, 8):
        (obs, info), (same, others) = vector.reset(seed=seed), singles.reset(seed=seed)
        np.testing.assert_array_equal(obs, same)
        np.testing.assert_array_equal(info["action_mask"], others["action_mask"])
        for _ in range(40):
            action = vector.action_space.sample()
            *ours, info = vector.step(action)
            *theirs, others = singles.step(action)
            for x, y in zip(ours, theirs):
                np.testing.assert_allclose(x, y, atol=1e-6)
            np.testing.assert_array_equal(info["action_mask"], others["action_mask"])
            assert ("final_obs" in info) == ("final_obs" in others) == bool(ours[2].any())
            for i in np.flatnonzero(ours[2]):
                np.testing.assert_allclose(info["final_obs"][i], others["final_obs"][i], atol=1e-6)


@pytest.mark.long
def test_flat_actions_are_pairs():
    pair, flat = OffersEnv(["env/world=sequential"]), OffersEnv(["env/world=sequential"], flat=True)
    pair.reset(seed=1)
    flat.reset(seed=1)
    for index in range(30):
        assert np.array_equal(flat.action_masks(), pair.action_mask[0].flatten())
        for x, y in zip(pair.step(np.array([index // 5, index % 5]))[:4], flat.step(index)[:4]):
            np.testing.assert_array_equal(x, y)


# ── in ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_terminated_and_truncated_and_what_a_step_led_to():
    env = counter(limit=2)
    rows = [env.step(torch.zeros(2, 1, dtype=torch.long)) for _ in range(4)]
    assert [r.obs[0, 0].item() for r in rows] == [1, 0, 1, 0] and [r.final_obs[0, 0].item() for r in rows] == [
        1,
        2,
        1,
        2,
    ]
    assert [r.truncated[0].item() for r in rows] == [False, True] * 2 and not any(r.terminated.any() for r in rows)
    both = counter(limit=3)
    rows = [both.step(torch.zeros(2, 1, dtype=torch.long)) for _ in range(3)]
    assert rows[-1].terminated.all() and not rows[-1].truncated.any() and rows[-1].final_obs[0, 0] == 3


@pytest.mark.slow
def test_ppo_bootstraps_through_truncation_from_the_final_observation():
    ppo = make_ppo(
        counter(limit=2), 1, num_steps=4, minibatches=1, gamma=0.9, gae_lambda=0.8, norm_reward=False, norm_adv="none"
    )
    rollout = ppo.collect()
    batch = ppo.compute_advantages(rollout)
    with torch.no_grad():
        delta = 2 + 0.9 * ppo.network.value(torch.tensor([2.0, 1.0])) - ppo.network.value(torch.tensor([1.0, 1.0]))
    assert torch.allclose(batch.advantage.view(4, 2)[1], delta.expand(2))


@pytest.mark.parametrize(
    "actions, chosen, expected",
    [
        (spaces.Discrete(3, start=-1), [2], 1),
        (spaces.MultiDiscrete([2, 3]), [1, 2], [1, 2]),
        (spaces.MultiDiscrete([2, 3], start=[1, 5]), [1, 2], [2, 7]),
    ],
)
def test_actions_arrive_as_the_space_has_them(actions, chosen, expected):
    env = counter(actions=actions)
    env.step(torch.tensor([chosen, chosen]))
    assert np.array_equal(env.envs.envs[0].unwrapped.asked[0], expected)


@pytest.mark.parametrize(
    "mask, forbidden", [([1, 0, 1, 1, 0], {(0, 2), (1, 0), (1, 1), (1, 2)}), ([1, 1, 1, 1, 1, 0], {(1, 2)})]
)
def test_masks_by_choice_and_by_combination(mask, forbidden):
    env = counter(actions=spaces.MultiDiscrete([2, 3]), mask=mask)
    for table in (env.reset()[1], env.step(torch.zeros(2, 2, dtype=torch.long)).action_mask):
        assert {tuple(pair) for pair in (~table[1]).nonzero().tolist()} == forbidden


@pytest.mark.parametrize("id", ["test/Turns-v0", "test/Asked-v0"])
def test_the_mask_after_a_truncation_is_that_of_the_final_observation(id):
    env = GymnasiumEnv(CPU, 0, id=id, kwargs={"limit": 1}, num_agents=2, evaluation=None)
    step = env.step(torch.zeros(2, 1, dtype=torch.long))
    assert step.truncated.all() and step.action_mask.tolist() == [[True, False]] * 2  # of the new episode
    assert step.final_action_mask.tolist() == [[False, True]] * 2
    (log,) = rollouts(env, UniformPolicy(), "any", 0, decisions=6, steps=3, all_propensities=False)
    assert log.action_mask.tolist() == [[True, False]] * 6 and log.truncated.all()
    assert log.next_obs.tolist() == [[1.0, 1.0]] * 6 and log.next_action_mask.tolist() == [[False, True]] * 6
    whole = GymnasiumEnv(CPU, 0, id=id, kwargs={}, num_agents=2, evaluation=None)  # terminates at 3
    masks = [whole.step(torch.zeros(2, 1, dtype=torch.long)) for _ in range(3)]
    assert [step.action_mask[0].tolist() for step in masks] == [[False, True], [True, False], [True, False]]
    assert all(torch.equal(step.action_mask, step.final_action_mask) for step in masks)


@pytest.mark.parametrize(
    "make, says",
    [
        (
            lambda: GymnasiumEnv(CPU, 0, id="Nowhere-v0", kwargs={}, num_agents=1, evaluation=None),
            "env.id, env.kwargs: Nowhere-v0",
        ),
        (
            lambda: GymnasiumEnv(CPU, 0, id="CartPole-v1", kwargs={"speed": 1}, num_agents=1, evaluation=None),
            "CartPole-v1 can't be",
        ),
        (
            lambda: GymnasiumEnv(CPU, 0, id="Pendulum-v1", kwargs={}, num_agents=1, evaluation=None),
            "Pendulum-v1 has Box",
        ),
        (lambda: watcher(spaces.Sequence(TWO_ACTIONS)), "expected observations of a fixed size, .* has Sequence"),
        (lambda: counter(mask=[0, 0]), "masks every action"),
        (lambda: counter(mask=[1, 1, 1]), "masks 3 actions, expected 2"),
        (lambda: counter(actions=spaces.MultiDiscrete([9] * 9)), "combinations"),
    ],
)
def test_what_can_not_be_used_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_images_are_said_to_be_flattened(capsys):
    image, numbers = spaces.Box(0, 255, (4, 5, 3), np.uint8), spaces.Box(-1, 1, (4, 5), np.float32)
    for space, size in ((image, 60), (spaces.Dict({"a": spaces.Tuple((image, TWO_ACTIONS)), "b": numbers}), 82)):
        assert watcher(space).obs_dim == size
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: env.id: test/Watcher-v0 observes images of (4, 5, 3): they become 60 numbers")
    assert watcher(numbers).obs_dim == 20 and not capsys.readouterr().err


def test_evaluation_counts_whole_episodes_and_leaves_training_alone():
    env = counter(limit=2)
    returns, lengths = play_episodes(lambda obs, mask: torch.zeros(2, 1, dtype=torch.long), env, 3)
    assert returns.tolist() == [3.0] * 6 and lengths.tolist() == [2] * 6
    before = env.current[0].clone()
    report = GymnasiumEvaluator(env, seed=1, episodes=5, validation=3).evaluate(None, "ppo")
    assert report.rows["random"]["return"] == 3.0 and torch.equal(env.reset()[0], before)


@pytest.mark.long
def test_our_environment_through_gymnasium_equals_itself():
    ours = sequential(2, 0, ["env.customers=3"])
    env = GymnasiumEnv(
        CPU,
        0,
        id="envs.adapters.gymnasium_offers:crm/Offers-v0",
        kwargs={"overrides": ["env.customers=3"]},
        num_agents=2,
        evaluation=None,
    )
    ours.seed([int(s) for s in np.random.SeedSequence((0, 0)).generate_state(2)])
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        action = torch.stack([torch.randint(n, (2,), generator=generator) for n in ours.nvec], -1)
        for x, y in zip(ours.step(action)[:6], env.step(action)[:6]):
            assert torch.allclose(x.float(), y.float(), atol=1e-6)


@pytest.mark.long
def test_ppo_learns_cartpole():
    env = load("gymnasium", CPU, 0, id="CartPole-v1", num_agents=8)
    ppo = make_ppo(
        env,
        40,
        num_steps=128,
        epochs=8,
        minibatches=4,
        gamma=0.99,
        gae_lambda=0.95,
        network={"normalize_obs": True},
        optimizer={"lr": 3e-3},
    )
    train(ppo)
    assert env.evaluation(env).validate(ppo)["validation/return"] > 300  # chance: 22


@pytest.mark.long
def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    script = (
        "import sys, runpy; sys.modules['gymnasium'] = None; sys.argv = ['train.py', 'env=gymnasium'];"
        f"runpy.run_path({str(ROOT / 'scripts' / 'train.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 and "pip install -e '.[gym]'" in done.stderr

"""PPO on expected advantages against exact values, finite differences and sampled advantages; and it learns."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

import reference_rl as reference
from comparisons import identical
from configs import composed
from rlcore import losses, returns
from rlcore.backends.accelerate import accelerate
from rlcore.backends.cuda_graphs import WARM_UP_CALLS
from rlcore.expected_batches import at_states
from rlcore.expected_ppo import ExpectedPPO
from rlcore.rollout import collect_rollout
from tiny_markov import (
    ACTIONS,
    PROBABILITY,
    REWARD,
    STATES,
    STEPS,
    TinyLookahead,
    TinyMarkov,
    best_return,
    exact_values,
    expected_return,
    mask_of,
    occupancy,
    policy_of,
)
from toy_envs import part, train

CPU = torch.device("cpu")
CLIP = 0.2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Draw normals in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_tiny(iterations: int, agents: int = 64, **changes) -> ExpectedPPO:
    """Build the shipped algorithm, smaller, for TinyMarkov."""
    env = TinyMarkov(agents)
    small = {
        "num_steps": STEPS,
        "total_steps": iterations * STEPS * agents,
        "network": {"hidden": [16], "first_bias": 0.0},
        "critic": {"hidden": [16]},
        "optimizer": {"lr": 0.02},
        "critic_optimizer": {"lr": 0.02},
        "minibatches": 2,
        "average_decay": 0.9,
        "drawn_states": 0,
    }
    config = OmegaConf.merge(part("ppo_expected", auxiliary=None), small, changes)
    return instantiate(config, _convert_="all")(env, 0)


# ── advantages and targets ──────────────────────────────────────────────────────────────────────────────────────────
def test_expected_advantages_equal_an_enumeration_of_actions_and_next_states():
    """In float64: loops over s, a and s′ in place of the one-step model's products."""
    prob = policy_of(drawn(STEPS, STATES, ACTIONS))
    _, value = exact_values(prob)
    state = torch.arange(STATES + 1).expand(STEPS, -1)  # an agent in every state, and one that has left
    next_values = value[1:STEPS, None, :STATES].expand(-1, STATES + 1, -1)
    action_value = TinyLookahead(TinyMarkov(1)).backup(state, next_values[None])
    advantage, mean = returns.expected_advantages(action_value[:, :STATES], prob)
    for t in range(STEPS):
        for s in range(STATES):
            q = []
            for a in range(ACTIONS):
                following = sum(float(PROBABILITY[s, a, n] * value[t + 1, n]) for n in range(STATES))
                q.append(float(REWARD[s, a]) + following)
            v = sum(float(p) * x for p, x in zip(prob[t, s], q))
            assert mean[t, s].item() == pytest.approx(v, abs=1e-12) == value[t, s].item()
            assert advantage[t, s].tolist() == pytest.approx([x - v for x in q], abs=1e-12)
    assert (action_value[:, STATES] == 0).all()
    torch.testing.assert_close((prob * advantage).sum(-1), torch.zeros(STEPS, STATES, dtype=torch.float64))


def test_sampled_gae_is_the_expected_advantage_in_the_mean():
    """Of an exact critic, over many draws of a state and an action, for any λ."""
    env = TinyMarkov(60_000, seed=3)
    logits = drawn(STEPS, STATES, ACTIONS, seed=1)
    prob = policy_of(logits)
    action_value, value = exact_values(prob)
    env.reset()
    states, actions, rewards = [], [], []
    for t in range(STEPS):
        state = env.state
        table = torch.cat((prob[t], torch.eye(ACTIONS, dtype=torch.float64)[:1]))
        action = torch.multinomial(table[state], 1, generator=env.generator)
        step = env.step(action)
        states.append(state)
        actions.append(action[:, 0])
        rewards.append(step.reward.double())
    state, action, reward = map(torch.stack, (states, actions, rewards))
    own = torch.stack([value[t][state[t]] for t in range(STEPS)])
    following = torch.cat((own[1:], torch.zeros_like(own[:1])))
    ends = torch.zeros_like(own, dtype=torch.bool)
    ends[-1] = True
    sampled = returns.gae(reward, own, following, ends, ends, 1.0, 0.7)
    expected, _ = returns.expected_advantages(action_value, prob)
    checked = 0
    for t in range(STEPS):
        for s in range(STATES):
            for a in range(ACTIONS):
                taken = sampled[t][(state[t] == s) & (action[t] == a)]
                if len(taken) > 500:
                    error = (taken.mean() - expected[t, s, a]).abs()
                    assert error < 4.5 * taken.std() / len(taken) ** 0.5 + 1e-6, (t, s, a)
                    checked += 1
    assert checked > 20


def test_lambda_targets_equal_the_scalar_recursion_and_their_limits():
    mean, value = drawn(5, 7, seed=2), drawn(5, 7, seed=3)
    for decay in (0.0, 0.4, 1.0):
        target = returns.lambda_targets(mean, value, decay)
        for n in range(7):
            g = v = 0.0
            for t in reversed(range(5)):
                g = mean[t, n].item() + decay * (g - v)
                v = value[t, n].item()
                assert target[t, n].item() == pytest.approx(g, abs=1e-12)
    torch.testing.assert_close(returns.lambda_targets(mean, value, 0.0), mean)  # the expected backup alone
    following = torch.cat((value[1:], torch.zeros_like(value[:1])))
    whole_future = (mean - following).flip(0).cumsum(0).flip(0)  # Σ_{k ≥ t} V̄_k − V(s_{k+1})
    torch.testing.assert_close(returns.lambda_targets(mean, value, 1.0), whole_future)


def test_a_batch_has_the_exact_advantages_of_an_exact_critic():
    """compute_advantages, on a critic that is set to the values of the network's own policy."""
    ppo = make_tiny(1)
    obs = torch.cat((torch.eye(STATES).repeat(STEPS, 1), torch.eye(STEPS).repeat_interleave(STATES, 0)), 1)
    mask = mask_of(torch.arange(STATES)).repeat(STEPS, 1)
    prob = ppo.network.distribution(obs, mask).probs.detach().double().unflatten(0, (STEPS, STATES))
    action_value, value = exact_values(prob)
    ppo.critic = ExactCritic(value[:STEPS, :STATES].float())
    rollout = ppo.collect()
    policy_batch, critic_batch = ppo.compute_advantages(rollout)
    state = ppo.lookahead.visited_states()
    step = torch.arange(STEPS)[:, None].expand_as(state).flatten()
    state = state.flatten()
    inside = state < STATES
    exact = (action_value - value[:STEPS, :STATES, None])[step[inside], state[inside]].float()
    exact = torch.where(policy_batch.action_mask[inside], exact, 0.0)
    torch.testing.assert_close(policy_batch.advantage[inside], exact, atol=1e-5, rtol=0)
    _, critic_state, value, target, counts = critic_batch
    assert torch.equal(critic_state[:, 0], state)
    torch.testing.assert_close(target[inside], value[inside], atol=1e-5, rtol=0)
    assert (policy_batch.advantage[~inside] == 0).all() and (target[~inside] == 0).all()
    assert torch.equal(counts[:, 0], inside) and 0 < (~inside).sum()
    assert torch.equal(policy_batch.has_choice, inside)


def test_drawn_states_have_the_exact_values_of_an_exact_critic():
    """Uniform over all states, at the step of an agent that has not left; the visited states come first."""
    ppo = make_tiny(1, agents=256, drawn_states=2)
    obs = torch.cat((torch.eye(STATES).repeat(STEPS, 1), torch.eye(STEPS).repeat_interleave(STATES, 0)), 1)
    prob = ppo.network.distribution(obs, mask_of(torch.arange(STATES)).repeat(STEPS, 1)).probs.detach().double()
    _, value = exact_values(prob.unflatten(0, (STEPS, STATES)))
    ppo.critic = ExactCritic(value[:STEPS, :STATES].float())
    policy_batch, critic_batch = ppo.compute_advantages(ppo.collect())
    visited = ppo.lookahead.visited_states()
    state, own, target, counts = (column.unflatten(0, (STEPS, 256)) for column in critic_batch[1:])
    assert len(policy_batch.obs) == STEPS * 256 and torch.equal(state[..., 0], visited)
    step = torch.arange(STEPS)[:, None]
    for j in (1, 2):
        exact = value[step, state[..., j]].float()
        torch.testing.assert_close(target[..., j], exact, atol=1e-5, rtol=0)
        torch.testing.assert_close(own[..., j], exact, atol=1e-5, rtol=0)
        assert torch.equal(counts[..., j], visited < STATES)
        share = torch.bincount(state[..., j].flatten(), minlength=STATES) / visited.numel()
        assert (share - 1 / STATES).abs().max() < 4.5 * (2 / 9 / visited.numel()) ** 0.5
    assert not torch.equal(state[..., 1], state[..., 2])


def test_no_state_is_drawn_where_observations_cannot_be_written_anew(monkeypatch):
    monkeypatch.setattr(TinyLookahead, "draws_states", False)
    ppo = make_tiny(1, drawn_states=2)
    _, critic_batch = ppo.compute_advantages(ppo.collect())
    assert torch.equal(critic_batch.state, ppo.lookahead.visited_states().flatten()[:, None])


def test_where_the_state_is_hidden_the_policy_learns_from_what_is_expected_of_it(monkeypatch):
    """Advantages are of `expected_backup`, whatever the true state; the critic's targets stay the true state's."""
    seen_ppo = make_tiny(1)
    seen, seen_targets = seen_ppo.compute_advantages(seen_ppo.collect())
    table = torch.randn(STEPS, seen_ppo.env.num_agents, ACTIONS, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(TinyLookahead, "filters_states", True)
    monkeypatch.setattr(TinyLookahead, "expected_backup", lambda self, next_values: table, raising=False)
    ppo = make_tiny(1)
    hidden, hidden_targets = ppo.compute_advantages(ppo.collect())
    assert torch.equal(hidden.log_prob, seen.log_prob) and torch.equal(hidden_targets.target, seen_targets.target)
    prob = hidden.log_prob.exp()
    expected = table.flatten(0, 1) - (prob * table.flatten(0, 1)).sum(-1, keepdim=True)
    expected = torch.where(hidden.action_mask, expected, 0.0)
    torch.testing.assert_close(hidden.advantage, expected)
    assert not torch.allclose(hidden.advantage, seen.advantage)


class ExactCritic(torch.nn.Module):
    """A critic that looks values [T, S] up by the step, which it observes one-hot."""

    scale = 1.0

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = values

    def forward(self, critic_obs: Tensor) -> Tensor:
        return critic_obs @ self.values


# ── the surrogate ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_at_ratio_one_the_gradient_is_the_exact_policy_gradient():
    """Weighted by the exact occupancy, against finite differences of the expected return, in float64."""
    logits = drawn(STEPS, STATES, ACTIONS, seed=4)
    prob = policy_of(logits)
    action_value, value = exact_values(prob)
    advantage = action_value - value[:STEPS, :STATES, None]
    mass = occupancy(prob).flatten()
    asked = logits.clone().requires_grad_()
    allowed = mask_of(torch.arange(STATES))
    log_prob = asked.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    log_ratio = torch.where(allowed, log_prob - prob.log(), 0.0)
    loss = losses.expected_policy_loss(log_ratio.flatten(0, 1), prob.flatten(0, 1), advantage.flatten(0, 1), CLIP, mass)
    (loss * mass.sum()).backward()
    for index in [(t, s, a) for t in range(STEPS) for s in range(STATES) for a in range(ACTIONS)]:
        up, down = logits.clone(), logits.clone()
        up[index] += 1e-5
        down[index] -= 1e-5
        difference = (expected_return(up) - expected_return(down)).item() / 2e-5
        assert -asked.grad[index].item() == pytest.approx(difference, abs=1e-8), index
    assert asked.grad.abs().max() > 0.05


def test_the_surrogate_equals_the_scalar_reference_and_clips_every_action():
    log_ratio, advantage = 0.4 * drawn(50, ACTIONS, seed=5), drawn(50, ACTIONS, seed=6)
    old_prob = drawn(50, ACTIONS, seed=7).softmax(-1)
    mask = torch.arange(50) % 3 > 0
    total = 0.0
    for n in range(50):
        for a in range(ACTIONS):
            one = reference.policy_loss([log_ratio[n, a].item()], [advantage[n, a].item()], CLIP)
            total += old_prob[n, a].item() * one * mask[n].item()
    loss = losses.expected_policy_loss(log_ratio.requires_grad_(), old_prob, advantage, CLIP, mask)
    assert loss.item() == pytest.approx(total / mask.sum().item(), rel=1e-12)
    loss.backward()
    ratio = log_ratio.detach().exp()
    adverse = ((ratio > 1 + CLIP) & (advantage > 0)) | ((ratio < 1 - CLIP) & (advantage < 0))
    assert torch.equal(log_ratio.grad == 0, adverse | ~mask[:, None]) and adverse[mask].any()


def test_masked_actions_get_no_gradient():
    ppo = make_tiny(1)
    policy_batch, _ = ppo.compute_advantages(ppo.collect())
    ppo.optimizer.zero_grad()
    ppo.network.actor[-1].weight.data.mul_(50)  # ratios beside 1
    metrics = ppo.compute_policy_gradients(policy_batch)
    assert all(p.grad.isfinite().all() for p in ppo.network.parameters()) and metrics["approx_kl"] > 0
    only_first = policy_batch._replace(
        action_mask=torch.arange(ACTIONS).expand_as(policy_batch.action_mask) == 0,
        has_choice=torch.zeros_like(policy_batch.has_choice),
    )
    ppo.optimizer.zero_grad()
    ppo.compute_policy_gradients(only_first)
    assert all((p.grad == 0).all() for p in ppo.network.parameters())


def test_an_agent_that_has_left_has_the_value_zero():
    values = drawn(4, STATES)
    value = at_states(values, torch.tensor([[0, 1], [2, 2], [STATES, 0], [1, STATES]]))
    nothing = torch.zeros(()).double()
    expected = (values[0, 0], values[0, 1], values[1, 2], values[1, 2], nothing, values[2, 0], values[3, 1], nothing)
    assert torch.equal(value, torch.stack(expected).view(4, 2))


# ── the whole algorithm ─────────────────────────────────────────────────────────────────────────────────────────────
def learned_return(ppo: ExpectedPPO) -> float:
    """Return J of the policy that is deployed, exactly."""
    obs = torch.cat((torch.eye(STATES).repeat(STEPS, 1), torch.eye(STEPS).repeat_interleave(STATES, 0)), 1)
    logits = ppo.policy.logits(obs).detach().double().unflatten(0, (STEPS, STATES))
    return expected_return(logits).item()


@pytest.mark.long
def test_it_learns_the_best_policy_of_a_small_process():
    """Within 2 % of the way from the uniform policy to the best one; ascent in the wrong direction ends below 0."""
    ppo = make_tiny(80, ent_coef=0.02, ent_coef_final=0.001)
    before = expected_return(torch.zeros(STEPS, STATES, ACTIONS, dtype=torch.float64)).item()
    log = train(ppo)
    assert (learned_return(ppo) - before) / (best_return() - before) > 0.98
    assert log["losses/explained_variance"][-1] > 0.95
    assert log["losses/entropy"][-1] < 0.5 < log["losses/entropy"][0]


def test_the_deployed_policy_is_the_moving_average_of_the_weights_without_the_initial_ones():
    """The initial weights are no policy: with a decay near 1 they would outweigh all that a short training learns."""
    ppo = make_tiny(1, epochs=1, average_decay=0.75)
    policy_batch, _ = ppo.compute_advantages(ppo.collect())
    passed = []
    for _ in range(3):
        ppo.train_policy(policy_batch)
        passed.append([p.detach().clone() for p in ppo.network.parameters()])
    share = torch.tensor([0.75**2, 0.75, 1.0]) / (0.75**2 + 0.75 + 1.0)
    for p, *weights in zip(ppo.policy.parameters(), *passed):
        torch.testing.assert_close(p.detach(), sum(a * w for a, w in zip(share, weights)))
    assert not torch.equal(ppo.policy.actor[0].weight, ppo.network.actor[0].weight)


@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one():
    whole, first, second = (make_tiny(4) for _ in range(3))
    for ppo, iterations in ((whole, (0, 1, 2, 3)), (first, (0, 1))):
        for k in iterations:
            ppo.iterate(k / 4)
    second.load_state_dict(first.state_dict())
    for k in (2, 3):
        second.iterate(k / 4)
    for name in ("network", "policy", "critic"):
        for a, b in zip(getattr(whole, name).parameters(), getattr(second, name).parameters()):
            assert torch.equal(a, b), name
    assert torch.equal(whole.critic_lr, second.critic_lr) and whole.critic_lr < whole.initial_critic_lr


def trained_on_offers(mode: str, *more: str) -> tuple[ExpectedPPO, object]:
    """A short training on drawn customers with contact caps."""
    small = ["env.num_agents=24", "algo.total_steps=2016", "algo.network.hidden=[8]", "algo.critic.hidden=[8]"]
    config = composed("algo=ppo_expected", "env/contact_rules=caps", "env.population.reference_size=200", *small, *more)
    env = instantiate(config.env, _convert_="all")(CPU, 0)
    ppo = accelerate(instantiate(config.algo, _convert_="all")(env, 0), mode)
    return ppo, train(ppo)


def trained_on_a_small_process(mode: str) -> tuple[ExpectedPPO, object]:
    """A short training in TinyMarkov."""
    ppo = accelerate(make_tiny(6, agents=8, epochs=1, critic_epochs=1, minibatches=4), mode)
    return ppo, train(ppo)


@pytest.mark.long
@pytest.mark.parametrize(
    "trained", [trained_on_a_small_process, pytest.param(trained_on_offers, marks=pytest.mark.slow)]
)
def test_recorded_it_learns_as_it_does_eagerly(tape, trained):
    """To the last bit, over iterations before and after the recording."""
    (eager, log), (recorded, other) = (trained(mode) for mode in ("eager", "cudagraph"))
    assert len(log.rows) > WARM_UP_CALLS + 2 and len(tape) >= 2
    assert identical(log.rows, other.rows)
    for name in ("network", "policy", "critic"):
        for a, b in zip(getattr(eager, name).parameters(), getattr(recorded, name).parameters()):
            assert torch.equal(a, b), name


@pytest.mark.long
def test_it_learns_where_the_state_is_hidden():
    """A critic of true states, and a policy that sees none of them."""
    ppo, log = trained_on_offers("eager", "env/observation=history", "algo.total_steps=576")
    assert ppo.lookahead.num_states == ppo.critic(torch.zeros(1, ppo.lookahead.critic_dim)).shape[-1] == 73
    assert ppo.env.obs_dim == ppo.network.actor[0].in_features and len(log.rows) == 2


@pytest.mark.long
def test_compiled_it_learns_as_it_does_eagerly():
    (_, log), (_, other) = (trained_on_offers(mode, "algo.total_steps=576") for mode in ("eager", "compile"))
    for name in ("losses/policy_loss", "losses/value_loss", "losses/spend", "rollout/reward"):
        assert log[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("env", ["env=gymnasium", "env=offers_sequential", "env.reward.shaping=false"])
def test_without_a_lookahead_one_line_names_the_way(env):
    if env == "env=gymnasium":
        pytest.importorskip("gymnasium")
    config = composed("algo=ppo_expected", env, "env.num_agents=4")
    made = instantiate(config.env, _convert_="all")(CPU, 0)
    with pytest.raises(ValueError, match="algo=ppo_expected: .*(use algo=ppo|expected env.reward.shaping)"):
        instantiate(config.algo, _convert_="all")(made, 0)


def test_a_rollout_is_what_the_network_acted():
    ppo = make_tiny(1)
    rollout = collect_rollout(ppo.env, ppo.network, torch.rand(STEPS, ppo.env.num_agents))
    policy_batch, _ = ppo.compute_advantages(rollout)
    chosen = policy_batch.log_prob.gather(1, rollout.action.flatten(0, 1))[:, 0]
    torch.testing.assert_close(chosen, rollout.log_prob.flatten())

"""A Markov decision process of three states, three actions and four steps, whose exact values are a few sums."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import Step, VectorEnv

STATES, ACTIONS, STEPS = 3, 3, 4
START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
GENERATOR = torch.Generator().manual_seed(7)
#: P(s′ | s, a) [S, A, S + 1]: the last column is that of leaving for good
PROBABILITY = torch.rand(STATES, ACTIONS, STATES + 1, generator=GENERATOR, dtype=torch.float64) ** 3
PROBABILITY = PROBABILITY / PROBABILITY.sum(-1, keepdim=True)
REWARD = torch.randn(STATES, ACTIONS, generator=GENERATOR, dtype=torch.float64)


class TinyMarkov(VectorEnv):
    """N agents in the process; an observation is the state and the step, one-hot, and zeros after leaving.

    In state 2 the last action is masked; an agent that has left can only take the first.
    """

    obs_dim = STATES + STEPS
    nvec = (ACTIONS,)
    info_keys = ("reward",)
    episode_length = STEPS

    def __init__(self, num_agents: int, seed: int = 0):
        self.num_agents, self.device = num_agents, torch.device("cpu")
        self.generator = torch.Generator().manual_seed(seed)

    def observe(self) -> Tensor:
        obs = torch.zeros(self.num_agents, self.obs_dim)
        inside = self.state < STATES
        rows = torch.arange(self.num_agents)
        obs[rows[inside], self.state[inside]] = 1.0
        obs[:, STATES + min(self.time, STEPS - 1)] = 1.0
        return obs

    def action_mask(self) -> Tensor:
        return mask_of(self.state)

    def reset(self) -> tuple[Tensor, Tensor]:
        self.time = 0
        self.state = torch.multinomial(START, self.num_agents, replacement=True, generator=self.generator)
        self.visited = [self.state]
        return self.observe(), self.action_mask()

    def step(self, action: Tensor) -> Step:
        inside = self.state < STATES
        state = self.state.clamp_max(STATES - 1)
        reward = torch.where(inside, REWARD[state, action[:, 0]], 0.0).float()
        drawn = torch.multinomial(PROBABILITY[state, action[:, 0]], 1, generator=self.generator)[:, 0]
        self.state = torch.where(inside, drawn, STATES)
        self.visited.append(self.state)
        self.time += 1
        ends = torch.full((self.num_agents,), self.time == STEPS)
        no = torch.zeros_like(ends)
        obs = self.observe()
        return Step(obs, self.action_mask(), reward, ends, no, obs, {"reward": reward})

    def as_lookahead(self, privileged: bool) -> TinyLookahead:
        return TinyLookahead(self)

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])


class TinyLookahead:
    """Its one-step model; a critic observes the step alone."""

    num_states, num_futures, critic_dim = STATES, 1, STEPS
    filters_states, draws_states = False, True

    def __init__(self, env: TinyMarkov):
        self.env = env

    def visited_states(self) -> Tensor:
        return torch.stack(self.env.visited[:STEPS])

    def critic_obs(self, obs: Tensor) -> Tensor:
        return obs[..., STATES:]

    def draw_states(self, visited: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(STATES, visited.shape, generator=generator)

    def as_if_in(self, state: Tensor, obs: Tensor, action_mask: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.nn.functional.one_hot(state, STATES).to(obs)
        return torch.cat((own, obs[..., STATES:]), -1), mask_of(state.flatten()).unflatten(0, state.shape)

    def future_critic_obs(self, critic_obs: Tensor) -> Tensor:
        return critic_obs[None, 1:]

    def backup(self, state: Tensor, next_values: Tensor) -> Tensor:
        inside = state.clamp_max(STATES - 1)
        following = torch.nn.functional.pad(next_values[0], (0, 1, 0, 0, 0, 1))  # of leaving, and after the end
        expected = torch.einsum("tnas,tns->tna", PROBABILITY.to(following)[inside], following)
        values = REWARD.to(following)[inside] + expected
        return torch.where((state < STATES)[..., None], values, 0.0)


def mask_of(state: Tensor) -> Tensor:
    """Return the valid actions of states [N], bool [N, A]."""
    mask = torch.ones(len(state), ACTIONS, dtype=torch.bool)
    mask[state == STATES - 1, -1] = False
    mask[state == STATES, 1:] = False
    return mask


def exact_values(prob: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q [T, S, A] and V [T + 1, S + 1] of a policy prob [T, S, A], by backward induction in float64."""
    value = torch.zeros(STEPS + 1, STATES + 1, dtype=torch.float64)
    action_value = torch.zeros(STEPS, STATES, ACTIONS, dtype=torch.float64)
    for t in reversed(range(STEPS)):
        action_value[t] = REWARD + PROBABILITY @ value[t + 1]
        value[t, :STATES] = (prob[t] * action_value[t]).sum(-1)
    return action_value, value


def occupancy(prob: Tensor) -> Tensor:
    """Return P(s at step t) under a policy prob [T, S, A], [T, S]."""
    mass, steps = START, []
    for t in range(STEPS):
        steps.append(mass)
        mass = torch.einsum("s,sa,san->n", mass, prob[t], PROBABILITY[..., :STATES])
    return torch.stack(steps)


def policy_of(logits: Tensor) -> Tensor:
    """Return the masked softmax of logits [T, S, A]."""
    return logits.masked_fill(~mask_of(torch.arange(STATES)), -torch.inf).softmax(-1)


def expected_return(logits: Tensor) -> Tensor:
    """Return J of the policy with these logits [T, S, A]."""
    _, value = exact_values(policy_of(logits))
    return START @ value[0, :STATES]


def best_return() -> float:
    """Return J of the best policy."""
    value = torch.zeros(STATES + 1, dtype=torch.float64)
    for _ in range(STEPS):
        values = (REWARD + PROBABILITY @ value).masked_fill(~mask_of(torch.arange(STATES)), -torch.inf)
        value = torch.cat((values.amax(1), value[-1:]))
    return (START @ value[:STATES]).item()

"""init=PATH: a training begins with what another has learned, and says in names what does not fit."""

from __future__ import annotations

import pytest
import torch

from comparisons import weights
from configs import composed
from rlcore.runs import checkpoint
from scripts.shared.building import build
from scripts.shared.cli import to_dict
from scripts.shared.warm_start import check_inputs, load_start
from small_runs import OFFERS

CPU = torch.device("cpu")
LEARNERS = {
    "ppo": ["algo.total_steps=576"],
    "ppo_expected": ["algo.total_steps=576", "algo.critic.hidden=[16]", "env.num_agents=48"],
    "bandit": [],
    "bcq": [],
    "cql": [],
}


def config(name: str, *more: str):
    keys = [key for key in OFFERS if name.startswith("ppo") or "minibatches" not in key]
    if name in ("bcq", "cql"):
        keys = [key for key in keys if "auxiliary" not in key]
    if name == "ppo_expected":
        keys = [key for key in keys if "paired" not in key]
    return composed(f"algo={name}", "env=offers", *keys, *LEARNERS[name], *more)


def moved(algorithm):
    """Give an algorithm's network weights that no seed draws."""
    with torch.no_grad():
        for k, p in enumerate(algorithm.network.parameters()):
            p.fill_(0.01 * (k + 1))
    return algorithm


def save(path, name, cfg, algorithm):
    logger = {"seconds": 0.0}
    inputs = algorithm.input_names
    state = {"agent": algorithm.state_dict(), "logger": logger, "name": name, "inputs": inputs}
    checkpoint.save(path, {**state, "config": to_dict(cfg, resolve=True)})


@pytest.mark.parametrize("name", LEARNERS)
def test_a_training_starts_from_the_policy_of_another(name, tmp_path):
    cfg = config(name)
    old = moved(build(cfg, name, CPU, None, None, None, []))
    if name == "ppo_expected":
        old.policy.load_state_dict(old.network.state_dict())
    save(tmp_path / "old.pt", name, cfg, old)
    path = str(tmp_path / "old.pt")
    later = config(name, f"init={path}", "seed=5")
    start = load_start(path, name, to_dict(later, resolve=True))
    new = build(later, name, CPU, None, start, None, [])
    fresh = build(config(name, "seed=5"), name, CPU, None, None, None, [])
    assert torch.equal(weights(new), weights(old)) and not torch.equal(weights(new), weights(fresh))
    assert new.iteration == 0 and torch.equal(new.generator.get_state(), fresh.generator.get_state())
    obs, mask = new.env.reset()
    u = torch.full((len(obs),), 0.3)
    old_obs = obs if new.policy.observes_price else obs[:, : new.env.context_dim]
    assert torch.equal(new.policy.act(old_obs, mask, u)[0], old.policy.act(old_obs, mask, u)[0])


def test_what_does_not_fit_is_named(tmp_path):
    cfg, path = config("ppo"), str(tmp_path / "old.pt")
    old = build(cfg, "ppo", CPU, None, None, None, [])
    save(path, "ppo", cfg, old)

    def loaded(name, *more):
        return load_start(path, name, to_dict(config(name, *more), resolve=True))

    with pytest.raises(ValueError, match="expected a policy of algo=bandit, got one of algo=ppo"):
        loaded("bandit")
    with pytest.raises(ValueError, match=r"other networks: algo.network.hidden was \[16\], is \[8\]"):
        loaded("ppo", "algo.network.hidden=[8]")
    with pytest.raises(ValueError, match="other networks: algo.network.activation.path was .*, is torch.nn.Tanh"):
        loaded("ppo", "algo.network.activation.path=torch.nn.Tanh")
    with pytest.raises(ValueError, match=r"on another scale: env.price_range was \[0.2, 15.0\], is \[0.2, 9.0\]"):
        loaded("ppo", "env.price_range=[0.2,9.0]")
    with pytest.raises(ValueError, match="of a version that did not name its policy's columns"):
        check_inputs(path, {}, old)
    drone = "+env.catalogue.channels.drone={cost: 0.1, attention: 0.2, opt_out: 0.001, fatigue_steps: 1}"
    with pytest.raises(ValueError, match="other actions: only here 'channels drone'"):
        loaded("ppo", drone)
    state = loaded("ppo", "env/observation=history")
    other = build(config("ppo", "env/observation=history"), "ppo", CPU, None, None, None, [])
    with pytest.raises(ValueError, match=r"sees other columns: only there 'P\(habit 0\)'.* and .* more; only here '"):
        check_inputs(path, state, other)

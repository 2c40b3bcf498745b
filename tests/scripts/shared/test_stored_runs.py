"""What is said where a checkpoint can't be restored: a part of its configuration, or a state that does not fit."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from configs import composed
from envs.configuration import instantiate_stored
from scripts.shared.cli import to_dict
from scripts.shared.stored_runs import fitting, restored

STATE = {"agent": {}, "name": "ppo", "logger": {}}
BROUGHT = "x.pt: its configuration, as the command line changes it: "


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("env.world.disabled_effects", [["a"]], f"{BROUGHT}env.world: .*World: TypeError: unhashable type: 'list'"),
        ("env.population.priors.rate", [0.1], f"{BROUGHT}env.population: .*SyntheticPopulation: TypeError: "),
        ("env.catalogue.channels", {"a": 3}, rf"{BROUGHT}catalogue: Error in call to .*'int' object is not iterable"),
        ("env.contact_rules.consent", {"fax": "x"}, "env.contact_rules.consent: unknown channel 'fax'; "),
    ],
)
def test_a_value_that_a_part_does_not_take_is_named_and_not_the_file(key, value, says):
    config = composed("env=offers", "env.num_agents=8", "env.population.reference_size=50").copy()
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(ValueError, match=f"^(?:{says})") as raised:
        restored(STATE, "x.pt", to_dict(config, resolve=True), torch.device("cpu"))
    assert "does not fit" not in str(raised.value)


def test_a_state_that_does_not_fit_is_said_to_be_with_its_first_tensor():
    for state, says in (
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
            "Error.* in loading .* Linear: size mismatch for weight: ",
        ),
        ({"weight": torch.ones(2, 4)}, r'Error.* in loading .* Linear: Missing key\(s\) in state_dict: "bias"'),
    ):
        with pytest.raises(ValueError, match=f"^x.pt: does not fit this configuration or device: {says}"):
            with fitting("x.pt"):
                nn.Linear(4, 2).load_state_dict(state)
    with pytest.raises(ValueError, match="^x.pt: does not fit this configuration or device: without 'members'$"):
        with fitting("x.pt"):
            STATE["agent"]["members"]


def test_no_file_is_blamed_for_a_full_device():
    with pytest.raises(torch.OutOfMemoryError), fitting("x.pt"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_explaining_a_fault_imports_nothing_that_a_file_names(tmp_path, monkeypatch):
    """The part beside it names a module that leaves a mark."""
    (tmp_path / "marking.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n\nclass Part:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = to_dict(composed("env=offers", "env.num_agents=8", "env.population.reference_size=50"), resolve=True)
    config["env"]["world"]["disabled_effects"] = [["a"]]
    config["beside"] = {"_target_": "marking.Part"}
    with pytest.raises(ValueError, match="env.world: .*World: TypeError"):
        restored(STATE, "x.pt", config, torch.device("cpu"))
    assert not (tmp_path / "mark").exists()
    instantiate_stored(config["beside"], "x.pt", trusted=["marking"])
    assert (tmp_path / "mark").exists()  # as the module would have

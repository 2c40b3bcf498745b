"""Configurations against signatures: what a class can't be given is one line that names the key and the class."""

from __future__ import annotations

import copy
import inspect
import re

import pytest
from omegaconf import DictConfig, OmegaConf

from configs import CONF, composed
from envs.signatures import check_kind, check_signatures, failed_part, located, parameters_of, parts_of

OWN = {"_target_": "envs.offers.world.customers.RewardConfig"}  # dataclass of keyword-only numbers


class Picky:
    def __init__(self, first, *, second, third=3):
        if second == "nothing":
            raise KeyError(first)


class Broader(Picky):
    def __init__(self, *, fourth, **more):
        super().__init__(1, **more)


def target(name: str) -> str:
    return f"{__name__}.{name}"


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"_target_": target("Picky"), "first": 1, "second": 2}, None),
        ({"_target_": target("Picky"), "_args_": [1], "second": 2}, None),
        ({"_target_": target("Picky"), "_partial_": True, "second": 2}, None),  # who calls it gives `first`
        ({"_target_": target("Picky"), "second": 2}, r"part.first: expected a value, which .*Picky needs"),
        ({"_target_": target("Picky"), "_partial_": True}, r"part.second: expected a value, which .*Picky needs"),
        ({"_target_": target("Picky"), "first": 1, "second": 2, "x": 0}, r"part.x: .*Picky takes first, second, third"),
        ({"_target_": target("Broader"), "fourth": 4, "first": 1, "second": 2}, None),
        ({"_target_": target("Broader"), "fourth": 4, "_partial_": True}, None),  # a user's class may give `second`
        ({"_target_": target("Broader"), "_partial_": True}, r"part.fourth: expected a value"),
        ({"_target_": target("Nothing")}, r"part._target_: expected the name of a class or function, got .*Nothing"),
        ({"_target_": "nothing.here"}, r"part._target_: expected the name .*No module named 'nothing'"),
        ({"_target_": "envs.offers"}, r"part._target_: expected the name of a class or function"),
        ({"_target_": None}, r"part._target_: expected the name of a class or function, got 'None'"),
        ({"_target_": "hydra.utils.get_class", "path": "torch.nn.Nope"}, r"part.path: expected the name of a class"),
    ],
)
def test_a_part_is_held_against_its_targets_signature(part, says):
    config = {"part": part, "beside": [1, {"x": None}]}
    if says is None:
        return check_signatures(config)
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        check_signatures(config)
    assert "\n" not in str(caught.value)


CHANGES = {  # of algo=ppo env=offers: from every group of parts, a key that is left out, and what may not be null
    "algo": ("gamma", "network"),
    "algo.network": ("hidden", "activation"),
    "algo.optimizer": (None, "_target_"),
    "algo.lr_schedule": (None, None),
    "env": ("catalogue", "population"),
    "env.world": ("season", None),
    "env.population": ("r2", None),
    "env.budget": ("share", None),
    "env.reward": ("churn_cost", None),
    "env.contact_rules": ("eligible", None),
    "env.observation": (None, None),
    "env.evaluation": ("customers", None),
}


def changed(shipped: DictConfig, key: str, *, without: str | None = None, **values) -> DictConfig:
    """Copy a configuration, and change keys of its part `key`."""
    config = copy.deepcopy(shipped)
    part = OmegaConf.select(config, key)
    OmegaConf.set_struct(config, False)
    part.update(values)
    if without:
        del part[without]
    return config


@pytest.mark.slow
def test_every_group_names_what_is_too_much_or_missing_or_null():
    shipped = composed("algo=ppo", "env=offers")
    check_signatures(shipped)
    parts = {key: part for key, part in parts_of({"algo": shipped.algo, "env": shipped.env})}
    assert not parts  # containers of OmegaConf are resolved first
    for key, (needed, null) in CHANGES.items():
        with pytest.raises(ValueError, match=f"^{key}.strange: .* takes .*; ~{key}.strange leaves this key out"):
            check_signatures(changed(shipped, key, strange=1))
        if needed:
            with pytest.raises(ValueError, match=f"^{key}.{needed}: expected a value, which .* needs"):
                check_signatures(changed(shipped, key, without=needed))
        if null:
            with pytest.raises(ValueError, match=f"^{key}.{null}: expected .*, got (null|'None')"):
                check_signatures(changed(shipped, key, **{null: None}))


@pytest.mark.slow
def test_what_may_be_null_by_its_comment_may_be_null_by_its_annotation():
    """Else a value that conf/ offers would be refused for its class."""
    checked = 0
    for path in sorted(CONF.rglob("*.yaml")):
        text = path.read_text()
        target = re.search(r"^_target_: (\S+)", text, re.MULTILINE)
        if target is None:
            continue
        try:
            parameters = parameters_of(located(path.name, target[1])) or {}
        except (ValueError, ImportError) as error:
            assert "is not installed" in str(error)
            continue
        for key in re.findall(r"^(\w+): (?:null\b|[^{#\n]+#.*\bnull(?::| or))", text, re.MULTILINE):
            annotation = str(parameters[key].annotation) if key in parameters else ""
            if annotation and parameters[key].annotation is not inspect.Parameter.empty:
                checked += 1
                check_kind(key, None, path.name, annotation)
    assert checked > 20


def test_the_innermost_part_that_failed_is_named():
    config = {"outer": {"_target_": target("Broader"), "inner": {"_target_": target("Picky")}}}
    with pytest.raises(KeyError) as caught:
        Broader(fourth=4, second="nothing")
    assert failed_part(caught.value, config) == f"outer.inner: {target('Picky')}"
    assert failed_part(caught.value, {"other": OWN}) is None

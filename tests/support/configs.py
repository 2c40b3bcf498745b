"""The shipped configuration for tests: a primary config, one group, or the object of a group."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from envs.configuration import compose_config

CONF = Path(__file__).parents[2] / "conf"


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """Compose conf/NAME.yaml without a command line; who gets it may change it."""
    return copy.deepcopy(_composed(*overrides, name=name))


@cache
def _composed(*overrides: str, name: str) -> DictConfig:
    return compose_config(*overrides, name=name)


@cache
def node(name: str, *first: str) -> DictConfig:
    """Compose conf/env/NAME.yaml (`../algo/…` leaves env) as scripts/train.py would, with all its defaults.

    `first` chooses what the group belongs to, as in algo=bandit for its explorers.
    """
    *group, option = os.path.normpath(f"env/{name}").split("/")
    config = composed(*first, f"{'/'.join(group)}={option}")
    return OmegaConf.select(config, ".".join(group))


def load(name: str, *args, **changes):
    """Instantiate conf/env/NAME.yaml with some of its keys replaced."""
    made = instantiate(OmegaConf.merge(node(name), changes), _convert_="all")
    return made(*args) if callable(made) else made

"""Build environments of conf/ from Python."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from inspect import isclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from envs.base import VectorEnv

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ROOT / "crm_rl" / "conf"  # where a wheel carries conf/ (setup.cfg)
CONF = PACKAGED if PACKAGED.is_dir() else ROOT / "conf"

REFERENCE = "${"  # begins what OmegaConf resolves
OWN_PACKAGES = ("rlcore", "envs", "email_rl", "scripts")
#: functions that a configuration from a file may call, beside the classes of our own packages
ADMITTED_FUNCTIONS = (
    "envs.offers.world.catalogue.Catalogue.build",
    "scripts.shared.stored_runs.load_teacher",
)
#: classes of others that a configuration from a file may build
ADMITTED_CLASSES = (
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.RMSprop",
    "torch.optim.SGD",
    "torch.nn.ELU",
    "torch.nn.GELU",
    "torch.nn.LeakyReLU",
    "torch.nn.ReLU",
    "torch.nn.SiLU",
    "torch.nn.Tanh",
)


def compose_config(*overrides: str, name: str = "train", with_hydra: bool = False) -> DictConfig:
    """Compose conf/NAME.yaml with overrides as on the command line; `with_hydra` keeps Hydra's own keys.

    A script that Hydra has started may call it too.
    """
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides=list(overrides), return_hydra_config=with_hydra)
    finally:
        GlobalHydra.instance().hydra = running


def make_env(*overrides: str, device: str | torch.device = "cpu", seed: int = 0) -> VectorEnv:
    """Build an environment, such as make_env("env=offers", "env.num_agents=500").

    Raises Hydra's errors where an override does not fit.
    """
    config = compose_config(*overrides)
    return instantiate(config.env, _convert_="all")(torch.device(device), seed)


def require_parts(config: Any, parts: Iterable[str], source: str) -> None:
    """Raise ValueError, with the file `source`, where the nested dicts of its configuration lack one of the parts."""
    for part in parts:
        found = config
        for key in part.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise ValueError(f"{source}: not a checkpoint of this project (without 'config.{part}')")


def instantiate_stored(config: Any, source: str, *, trusted: Iterable[str] = ()) -> Any:
    """Build the object of a configuration that comes from a file, such as a checkpoint.

    A `_target_` is a function to call, so a file could name any function of any installed package. Only the classes of
    this project's packages and of the packages in `trusted`, and a short list of optimisers, activations and functions,
    are admitted. Raises ValueError, with the file and the target, where the configuration has another target, and where
    a reference is left in what its references stand for: Hydra would resolve it unseen.
    """
    node = config if OmegaConf.is_config(config) else OmegaConf.create(config)
    plain = OmegaConf.to_container(node, resolve=True)  # resolved, because a reference could hide a target
    _check_targets(plain, source, (*OWN_PACKAGES, *trusted))
    return instantiate(plain, _convert_="all")


def _check_targets(config: Any, source: str, packages: tuple[str, ...]) -> None:
    """Raise ValueError where nested containers have a `_target_` that is not admitted, or a reference."""
    if isinstance(config, str) and REFERENCE in config:
        raise ValueError(f"{source}: its configuration has a hidden reference, {config!r}, which is not resolved")
    if isinstance(config, list):
        for part in config:
            _check_targets(part, source, packages)
    if not isinstance(config, dict):
        return
    if "_target_" in config:
        names_class = config["_target_"] == "hydra.utils.get_class"
        target = config.get("path") if names_class else config["_target_"]
        if not is_admitted(target, packages):
            raise ValueError(
                f"{source}: its configuration names {target}, which is not run: expected a class of "
                f"{', '.join(packages)}, or one of PyTorch's usual optimisers and activations; "
                "trusted_packages=[NAME] admits a package of your own"
            )
    for part in config.values():
        _check_targets(part, source, packages)


def is_admitted(target: Any, packages: tuple[str, ...] = OWN_PACKAGES) -> bool:
    """Tell whether a configuration from a file may call `target`.

    Raises ValueError where a module of our own lacks a package of an extra.
    """
    if not isinstance(target, str):
        return False
    if target in (*ADMITTED_CLASSES, *ADMITTED_FUNCTIONS):
        return True
    if target.partition(".")[0] not in packages:
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError):
        return False
    # A module's attributes include its imports: rlcore.runs.checkpoint.shutil.rmtree is not ours.
    return isclass(found) and found.__module__.partition(".")[0] in packages

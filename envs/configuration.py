"""Build environments of conf/ from Python."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from envs.base import VectorEnv

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ROOT / "crm_rl" / "conf"  # where a wheel carries conf/ (setup.cfg)
CONF = PACKAGED if PACKAGED.is_dir() else ROOT / "conf"


def compose_config(*overrides: str, name: str = "train") -> DictConfig:
    """Compose conf/NAME.yaml with overrides as on the command line. A script that Hydra has started may call it too."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def make_env(*overrides: str, device: str | torch.device = "cpu", seed: int = 0) -> VectorEnv:
    """Build an environment, such as make_env("env=offers", "env.num_agents=500").

    Raises Hydra's errors where an override does not fit.
    """
    config = compose_config(*overrides)
    return instantiate(config.env, _convert_="all")(torch.device(device), seed)

"""Train from Python, as scripts/train.py does on the command line."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from envs.configuration import CONF
from scripts.shared.overrides import check_config
from scripts.train import FinishedRun
from scripts.train import train as train_by_config


def train(*overrides: str, directory: Path | str) -> FinishedRun:
    """Train and evaluate, such as train("algo=ppo", "env=offers", "seed=1", directory="runs/ppo_1").

    The directory gets the files of a run; it is made where it is missing. Raises ValueError, in one line, for a value
    that does not fit, and Hydra's errors for an unknown key.
    """
    directory = Path(directory)
    running, running_config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            whole = compose("train", overrides=list(overrides), return_hydra_config=True)
            whole.hydra.runtime.output_dir = str(directory)
            cfg = deepcopy(whole)
            with open_dict(cfg):
                del cfg["hydra"]
            HydraConfig.instance().set_config(whole)
            check_config(cfg)
            directory.mkdir(parents=True, exist_ok=True)
            finished = train_by_config(cfg, directory)
        assert finished is not None  # a process alone
        return finished
    finally:
        GlobalHydra.instance().hydra = running
        HydraConfig.instance().cfg = running_config

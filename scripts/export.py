"""Write a trained policy as a package, the folder from which a shop decides.

Usage:

    python scripts/export.py checkpoint=PATH out=FOLDER

A policy is exported where its view is a shop's: env/observation=history or belief (docs/live.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.live.export import export
from scripts.shared.cli import choose_device, guarded, launch, to_dict
from scripts.shared.stored_runs import trained


@hydra.main(config_path=str(CONF), config_name="export", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    for key, example in (("checkpoint", "outputs/…/checkpoint.pt"), ("out", "policy")):
        if cfg[key] is None:
            raise ValueError(f"{key}: expected a path, as in {key}={example}")
    device = choose_device("cpu", cfg.threads, cfg.float32_matmul_precision)
    env, agent, name, config, *_ = trained(cfg, device, ("env", "algo", "seed", "log"))
    package = export(
        cfg.out,
        env,
        agent,
        name=name,
        config=to_dict(config, resolve=True),
        metrics=Path(cfg.checkpoint).with_name("metrics.json"),
        drift=cfg.drift,
        source=str(cfg.checkpoint),
    )
    print(
        f"{cfg.out}: {name}, {len(package.columns)} columns, {package.catalogue.action_codec.num_treatments} actions, "
        f"{len(package.prices)} prices, {package.manifest['examples']['rows']} examples verified"
    )


if __name__ == "__main__":
    launch(main)

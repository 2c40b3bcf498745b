"""Judge a trained policy again: python scripts/evaluate.py checkpoint=PATH env.evaluation.customers=4000."""
from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlcore import checkpoint  # noqa: E402
from scripts.entry import choose_device, finish, guarded, publish, restore  # noqa: E402


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    directory = Path(HydraConfig.get().runtime.output_dir)
    device = choose_device(cfg.device, cfg.threads)
    state = checkpoint.load(cfg.checkpoint) if cfg.checkpoint else None
    if state:  # the world that it was trained in, but for what this command line says
        said = [x for x in HydraConfig.get().overrides.task if x.partition("=")[0].lstrip("+~").startswith("env.")]
        cfg = OmegaConf.merge(cfg, {"env": state["config"]["env"], "algo": state["config"]["algo"],
                                    "seed": state["config"]["seed"]}, OmegaConf.from_dotlist(said))
    env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
    agent, name = None, None
    logger = instantiate(cfg.logger)(directory, 0)
    if state:
        agent, name = instantiate(cfg.algo, _convert_="all")(env, cfg.seed, cfg.fast), state["name"]
        restore(state, cfg.checkpoint, agent, logger)
    publish(env.evaluation(env).run(agent, name), name, logger, directory, cfg)


if __name__ == "__main__":
    main()
    finish()

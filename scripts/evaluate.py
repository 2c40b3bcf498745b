"""Judge a trained policy again: python scripts/evaluate.py checkpoint=PATH env.evaluation.customers=4000."""
from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlcore import checkpoint  # noqa: E402
from scripts.entry import choose_device, finish, fitting, guarded, publish  # noqa: E402


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    directory = Path(HydraConfig.get().runtime.output_dir)
    device = choose_device(cfg.device, cfg.threads)
    state = checkpoint.load(cfg.checkpoint) if cfg.checkpoint else None
    if state:
        cfg = as_trained(cfg, state["config"], HydraConfig.get().overrides.task)
    with fitting(cfg.checkpoint) if state else nullcontext():  # one of another version has other parameters
        env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
    agent, name = None, None
    logger = instantiate(cfg.logger)(directory, 0)
    if state:
        with fitting(cfg.checkpoint):
            env.load_fitted(state["agent"].get("env"))
        agent, name = instantiate(cfg.algo, _convert_="all")(env, cfg.seed, cfg.fast), state["name"]
        with fitting(cfg.checkpoint):
            agent.load_weights(state["agent"])
            logger.load_state_dict(state["logger"])
    publish(env.evaluation(env).run(agent, name), name, logger, directory,
            OmegaConf.to_container(cfg, resolve=True))


def as_trained(cfg: DictConfig, trained: dict, overrides: list[str]) -> DictConfig:
    """Take algorithm and environment from a checkpoint, but for single keys of env that the command line names."""
    said = []
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith("env."):
            said.append(override.lstrip("+"))
        elif key.split("/")[0].split(".")[0] in ("env", "algo", "seed", "experiment"):
            raise ValueError(f"{override}: the checkpoint brings its own; only keys below env can be changed, as in "
                             "env.evaluation.customers=4000")
    own = {key: trained[key] for key in ("env", "algo", "seed")}
    whole = OmegaConf.create({**OmegaConf.to_container(cfg), **own})
    OmegaConf.set_struct(whole, True)
    try:
        return OmegaConf.merge(whole, OmegaConf.from_dotlist(said))
    except OmegaConfBaseException as error:
        raise ValueError(f"{', '.join(said)}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    main()
    finish()

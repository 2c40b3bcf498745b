"""Train and judge: python scripts/train.py algo=ppo env=offers, algo=reward_model env=email, or algo=bandit log=PATH."""
from __future__ import annotations

import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlcore import checkpoint, logged  # noqa: E402
from rlcore.logfile import read  # noqa: E402
from scripts.entry import check_fit, choose_device, finish, fitting, flatten, guarded, publish, teacher  # noqa: E402


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    directory = Path(HydraConfig.get().runtime.output_dir)
    config = OmegaConf.to_container(cfg, resolve=True)
    device = choose_device(cfg.device, cfg.threads)
    parts = {key: instantiate(cfg[key], _convert_="all") for key in ("env", "algo", "logger")}
    env = parts["env"](device, cfg.seed)
    check_fit(parts["algo"], env)
    state = checkpoint.load(cfg.resume) if cfg.resume else None
    if state:
        with fitting(cfg.resume):
            env.load_fitted(state["agent"].get("env"))
    agent = parts["algo"](env, cfg.seed, cfg.fast)
    name = HydraConfig.get().runtime.choices["algo"]
    if cfg.log:
        if not hasattr(agent, "learn_from"):
            raise ValueError(f"algo={name} log={cfg.log}: {name} can't learn from a log, expected algo=bandit, bcq, cql or twin")
        agent.learn_from(logged.fitting(read(cfg.log), env, cfg.log))
    if getattr(agent, "init", None):
        agent.teacher = teacher(agent.init, env)
    evaluation = getattr(agent, "evaluation", env.evaluation)(env)
    stopped: list[int] = []

    if state:
        with fitting(cfg.resume):
            agent.load_state_dict(state["agent"])
    with parts["logger"](directory, agent.iterations) as logger:
        if state:
            with fitting(cfg.resume):
                logger.load_state_dict(state["logger"])
            before, now = flatten(state["config"]), flatten(config)
            for key in sorted(before.keys() | now.keys()):
                if before.get(key) != now.get(key) and key != "resume":
                    logger.console.print(f"resume: {key} was {before.get(key)}, is {now.get(key)}", highlight=False)

        def save() -> None:
            checkpoint.save(directory / "checkpoint.pt", {
                "agent": agent.state_dict(), "logger": logger.state_dict(), "name": name,
                "config": config})

        # The first Ctrl-C ends the iteration and saves; a second one ends the process.
        previous = signal.signal(signal.SIGINT, lambda *_: (stopped.append(1), signal.signal(signal.SIGINT, previous)))
        try:
            agent.train(logger, save, lambda: evaluation.score(agent), lambda: bool(stopped))
        finally:
            signal.signal(signal.SIGINT, previous)
    if stopped:
        logger.close()
        print(f"stopped after iteration {agent.iteration} of {agent.iterations}; go on with "
              f"resume={directory / 'checkpoint.pt'}")
        sys.exit(130)
    logger.console.print("evaluating on what nothing was trained on …")
    publish(evaluation.run(agent, name), name, logger, directory, config)


if __name__ == "__main__":
    main()
    finish()

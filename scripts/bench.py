"""Run a benchmark, which a file of conf/benchmark/ names.

Usage:

    python scripts/bench.py speed/roofline
    python scripts/bench.py ope/coverage benchmark.repeats=10

The result is benchmark.json in a folder of outputs/benchmark/; keys of a benchmark stand below `benchmark`.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from rlcore.runs import checkpoint
from scripts.shared.cli import choose_device, guarded, launch


@hydra.main(config_path=str(CONF), config_name="bench", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    directory = Path(HydraConfig.get().runtime.output_dir)
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    measured = instantiate(cfg.benchmark, _convert_="all")(directory, device, cfg.seed)
    checkpoint.save_json(
        directory / "benchmark.json",
        {
            "benchmark": HydraConfig.get().runtime.choices["benchmark"],
            "machine": machine(device),
            "config": OmegaConf.to_container(cfg, resolve=True),
            **measured,
        },
    )
    print(f"{directory}/: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_file()))}")


def machine(device: torch.device) -> dict:
    """Describe the machine that a figure was measured on."""
    cpu = (
        next(
            (
                line.partition(":")[2].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            "",
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"benchmark={sys.argv[1]}"
    launch(main, groups=("benchmark",))

"""Short seeded runs of every algorithm and their recorded results: a change of form must change no result.

    python tests/recorded_runs/record.py compare [NAME ...]
        # run again and print the largest difference to the record
    python tests/recorded_runs/record.py record [NAME ...]
        # replace the record, after a change that was meant to change results

`recorded.json` beside this file holds, for each run, metrics.json without its timings and a digest of the network's
weights. Results agree to the last bit only on the processor that made the record; on others rounding differs, and grows
with training.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).parent / "recorded.json"
# timings, and what repeats a row or a log
LEFT_OUT = ("seconds", "steps_per_second", "evaluation_seconds", "headline", "curve")

STATE = "env/observation=state"
EXACT = "env.population.r2=1.0"  # features determine the parameters
OFFERS = [
    EXACT,
    "env.num_agents=48",
    "algo.network.hidden=[16]",
    "env.population.reference_size=500",
    "env.evaluation.customers=30",
    "env.evaluation.seasons=2",
    "env.evaluation.validation=16",
    "env.evaluation.tuning_customers=20",
    "env.evaluation.tuning_seasons=1",
    "env.evaluation.fees=[0.5]",
    "env.evaluation.regression_customers=300",
    "env.evaluation.price_grid.points=8",
    "env.evaluation.bound.max_evaluations=12",
]
OFFERS_PPO = [
    *OFFERS,
    "env=offers",
    "algo.minibatches=4",
    "algo.auxiliary.hidden=[8]",
    "algo.eval_every=2",
    "algo.total_steps=3456",
]
EMAIL = [
    "env=email",
    "env.corpus.train=400",
    "env.corpus.valid=60",
    "env.corpus.test=60",
    "algo.encoder.dim=16",
    "algo.encoder.ffn_dim=16",
    "algo.encoder.layers=1",
    "algo.encoder.heads=2",
    "algo.encoder.steps=1",
]
RUNS: dict[str, list[str]] = {
    "ppo offers": ["algo=ppo", *OFFERS_PPO, STATE],
    "ppo offers, histories and caps": ["algo=ppo", *OFFERS_PPO, "env/observation=history", "env/contact_rules=caps"],
    "ppo offers from cql": [
        *OFFERS_PPO,
        STATE,
        "algo=distilled_ppo",
        "algo.teacher.checkpoint={cql}/checkpoint.pt",
        "algo.distill_iterations=3",
    ],
    "ppo offers_sequential": [
        "algo=ppo",
        "env=offers_sequential",
        "env.num_agents=8",
        "algo.total_steps=4480",
        "algo.num_steps=28",
        "algo.minibatches=2",
        "env.evaluation.worlds=4",
        "env.evaluation.validation=2",
        "env.evaluation.tuning_worlds=2",
    ],
    "ppo gymnasium": [
        "algo=ppo",
        "env=gymnasium",
        "env.num_agents=4",
        "algo.total_steps=4096",
        "algo.num_steps=128",
        "env.evaluation.episodes=4",
        "env.evaluation.validation=2",
    ],
    "bandit offers": [
        *OFFERS,
        STATE,
        "algo=bandit",
        "env=offers",
        "algo.auxiliary.hidden=[8]",
        "algo.total_steps=3456",
        "algo.updates=6",
        "algo.batch_size=256",
    ],
    "bandit offers_sequential": [
        "algo=bandit",
        "env=offers_sequential",
        "env.num_agents=8",
        "algo.total_steps=2240",
        "algo.num_steps=28",
        "algo.updates=4",
        "algo.batch_size=128",
        "env.evaluation.worlds=4",
        "env.evaluation.validation=2",
        "env.evaluation.tuning_worlds=2",
    ],
    "cql": [
        *OFFERS,
        STATE,
        "algo=cql",
        "env=offers",
        "algo.auxiliary.hidden=[8]",
        "algo.total_steps=8192",
        "algo.updates=8",
        "algo.batch_size=256",
        "log={log}",
    ],
    "bcq": [
        *OFFERS,
        STATE,
        "algo=bcq",
        "env=offers",
        "algo.auxiliary.hidden=[8]",
        "algo.total_steps=8192",
        "algo.updates=8",
        "algo.batch_size=256",
        "log={log}",
    ],
    "twin": [
        EXACT,
        STATE,
        "algo=twin",
        "env=offers",
        "algo.members=2",
        "algo.twin.reference_size=500",
        "algo.twin.rounds=2",
        "env.population.reference_size=500",
        "log={log}",
    ],
    "ppo on a twin": [
        "algo=ppo",
        *(x.replace("env.population.", "env.population.base.") for x in OFFERS_PPO),
        STATE,
        "env/population=twin",
        "env.population.path={twin}/checkpoint.pt",
    ],
    "reward_model": [
        *EMAIL,
        "algo=reward_model",
        "algo.updates_per_iteration=4",
        "algo.eval_every=1",
        "env.evaluation.bootstrap_samples=50",
    ],
    "ppo_kl": [
        *EMAIL,
        "algo=ppo_kl",
        "algo.language_model.dim=16",
        "algo.language_model.heads=2",
        "algo.language_model.layers=1",
        "algo.language_model.sft_steps=1",
        "algo.sft.enough_mails=0",
        "algo.min_reward_spread=0.0",
        "algo.reward_model_choice.must_beat_majority=false",
        "algo.reward_model_choice.few_mails=0",
        "algo.generation.response_tokens=84",
        "algo.generation.prompt_tokens=44",
        "algo.iterations=3",
        "algo.mails_per_iteration=16",
        "algo.minibatches=2",
        "algo.micro_batch_size=8",
        "algo.normalization_mails=16",
        "algo.eval_every=1",
        "env.evaluation.test_mails=12",
        "env.evaluation.validation_mails=8",
        "env.evaluation.best_of=2",
        "env.evaluation.bootstrap_samples=50",
        "algo.sft.updates_per_iteration=2",
        "algo.reward_model_training.updates_per_iteration=4",
        "algo.reward_model_training.eval_every=1",
    ],
}
NEEDS_LOG = ("cql", "bcq", "twin")
NEEDS_RUN = {"ppo offers from cql": "cql", "ppo on a twin": "twin"}


def call(folder: Path, script: str, overrides: list[str]) -> None:
    """Run a script in a folder; end with its messages where it fails."""
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *overrides, "threads=1", "device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this checkout, whatever is installed
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(overrides)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def digest(checkpoint: Path) -> str:
    """Hash the floating-point weights of the network that acts, in their order."""
    agent = torch.load(checkpoint, map_location="cpu", weights_only=True)["agent"]
    weights = agent.get("network") or agent.get("policy") or agent
    found = hashlib.sha256()

    def visit(part) -> None:
        if isinstance(part, torch.Tensor):
            if part.is_floating_point():
                found.update(part.float().numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                visit(part[key])
        elif isinstance(part, (list, tuple)):
            for x in part:
                visit(x)

    visit(weights)
    return found.hexdigest()[:16]


def directory(name: str, folder: Path) -> Path:
    """Name the folder that one of RUNS writes to."""
    return folder / name.replace(" ", "_").replace(",", "")


def play(name: str, folder: Path) -> dict:
    """Run one of RUNS, after the runs that it needs, and return its results."""
    log = folder / "log.csv"
    if name in NEEDS_LOG and not log.exists():
        call(folder, "collect", [EXACT, STATE, "env.num_agents=200", "decisions=4800", "out=log.csv"])
    if name in NEEDS_RUN and not directory(NEEDS_RUN[name], folder).exists():
        play(NEEDS_RUN[name], folder)
    where = directory(name, folder)
    places = {"{log}": log, **{f"{{{needed}}}": directory(needed, folder) for needed in NEEDS_RUN.values()}}
    overrides = []
    for override in RUNS[name]:
        for place, path in places.items():
            override = override.replace(place, str(path))
        overrides.append(override)
    call(folder, "train", [*overrides, f"hydra.run.dir={where}"])
    metrics = json.loads((where / "metrics.json").read_text())
    return {"weights": digest(where / "checkpoint.pt"), **{key: x for key, x in metrics.items() if key not in LEFT_OUT}}


def leaves(value, path: str = "") -> dict[str, float | str]:
    """Name every leaf of nested results by its path."""
    if isinstance(value, dict):
        return {name: x for key, part in value.items() for name, x in leaves(part, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {name: x for key, part in enumerate(value) for name, x in leaves(part, f"{path}/{key}").items()}
    return {path: value}


def difference(old: dict, new: dict) -> str:
    """Describe how two results differ: in their weights, in names, and the largest difference of numbers."""
    same = "same weights to the last bit" if old["weights"] == new["weights"] else "other weights"
    before, now = leaves(old), leaves(new)
    lines = [f"only in one: {name}" for name in sorted(before.keys() ^ now.keys())[:8]]
    worst, where = 0.0, "-"
    for name in before.keys() & now.keys() - {"/weights"}:
        a, b = before[name], now[name]
        numbers = all(isinstance(x, (int, float)) for x in (a, b))
        gap = abs(a - b) / max(1.0, abs(a)) if numbers and a == a and b == b else float(repr(a) != repr(b))
        if gap > worst:
            worst, where = gap, name
    return "; ".join([same, f"largest difference {worst:.1e} ({where})", *lines])


def main() -> None:
    todo = sys.argv[1] if len(sys.argv) > 1 else "compare"
    names = sys.argv[2:] or list(RUNS)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found = play(name, Path(folder))
            if todo == "record":
                record[name] = found
                RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            print(f"{name}: {difference(record[name], found)}", flush=True)


if __name__ == "__main__":
    main()

"""Write a trained policy as a package: a folder that decides without this project's training (docs/live.md)."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from envs.live.columns import DATES, read_columns
from envs.live.examples import Examples, draw_inputs, draw_table, write_examples
from envs.live.exportable import check_exportable, columns_of
from envs.live.graph import make_decide, to_onnx
from envs.live.package import Package
from envs.live.package_files import EXAMPLES, GRAPH, MANIFEST, MANIFEST_SUM, OBSERVATION, graph_notes
from envs.offers.env import OffersEnv
from envs.offers.evaluation.evaluator import OffersEvaluator
from rlcore.algorithm import Algorithm
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs import checkpoint

EXAMPLE_PRICES = 4  # of the grid, at which examples have scores
TRACED = (3, 2)  # customers and prices of the inputs that the graph is traced with; both numbers stay open


def export(
    out: Path | str,
    env: OffersEnv,
    agent: Algorithm,
    *,
    name: str,
    config: dict[str, Any],
    metrics: Path,
    drift: float | None,
    source: str,
) -> Package:
    """Write an algorithm's policy as a package, whole or not at all, and return the package as it is loaded.

    `config` is the configuration that env and agent were built by, `metrics` the path where the run's metrics.json may
    lie, `drift` what the policy is told of the price's weekly change (None: what the run's evaluation found). Raises
    ValueError where the policy can't be exported or where the package would not pass the checks of loading; what was at
    `out` before then stays.
    """
    out = Path(out)
    check_exportable(env, agent, source)
    assert isinstance(agent, NetworkAlgorithm)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out}: expected a new folder or an older package to replace, got something else")
    out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(metrics.read_text()) if metrics.is_file() else {}
    row = found.get("policies", {}).get(name, {})
    files, manifest = package_files(
        env,
        agent,
        config["env"],
        config["seed"],
        observed_drift(drift, row, env) if agent.policy.observes_price else 0.0,
    )
    if found:
        files["metrics.json"] = metrics.read_bytes()
    manifest |= {
        "algorithm": name,
        "seed": config["seed"],
        "learned_from_log": config.get("log") is not None,
        "observes_price": agent.policy.observes_price,
        "last_price": (row.get("prices") or [None])[-1],
        "versions": versions(),
        "git_revision": git_revision(),
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
    }
    text = (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    files[MANIFEST] = text
    files[MANIFEST_SUM] = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()
    write_package(out, files)
    return Package.load(out)


def write_package(out: Path, files: dict[str, bytes]) -> None:
    """Write a package's files as one folder, whole or not at all, after the checks of loading."""

    def write(folder: Path) -> None:
        for file, data in files.items():
            (folder / file).write_bytes(data)
        Package.load(folder)

    checkpoint.atomic_folder(out, write)


def package_files(
    env: OffersEnv, agent: NetworkAlgorithm, config: dict[str, Any], seed: int, drift: float
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return a package's files, but for its package.json, and the parts of package.json that its reader needs."""
    columns, transform = columns_of(env.population, env)
    decide = make_decide(env, agent, transform.to_module())
    evaluator = env.evaluation(env)
    assert isinstance(evaluator, OffersEvaluator)  # that of an OffersEnv
    prices = evaluator.prices.float()
    today = "2000-01-01" if any(column.kind == DATES for column in columns) else None
    table = draw_table(columns, transform, today, seed)
    read = read_columns(table, columns, transform, source="examples", separator=",", today=today)
    features = transform.to_module()(read.numbers, read.levels).float()
    catalogue, num_cap_columns = env.world.catalogue, len(env.contact_rules.cap_columns)
    weeks = draw_inputs(read, features, env.codec, catalogue, num_cap_columns, seed)
    few = prices[torch.linspace(0, len(prices) - 1, EXAMPLE_PRICES).long()]
    with torch.no_grad():
        scores = [decide(*inputs, few, torch.tensor(drift)) for inputs in weeks]
    manifest = {
        "columns": [column._asdict() for column in columns],
        "transform": transform.state_dict(),
        "num_features": env.static_dim + num_cap_columns,
        "prices": prices.tolist(),
        "drift": drift,
        "examples": {"prices": few.tolist(), "drift": drift, "today": today, "rows": table.num_rows},
        "env": config,
    }
    traced = weeks[0].take(slice(TRACED[0]))
    files = {
        GRAPH: to_onnx(decide, traced, prices[: TRACED[1]], drift, graph_notes(manifest)),
        EXAMPLES: write_examples(table, Examples(weeks, scores, few, drift), env.codec.weeks),
    }
    fitted = env.codec.state_dict()
    if fitted:
        buffer = io.BytesIO()
        torch.save(fitted, buffer)
        files[OBSERVATION] = buffer.getvalue()
    return files, manifest


def observed_drift(given: float | None, row: dict[str, Any], env: OffersEnv) -> float:
    """Return the weekly drift of the log price that a policy is told: as given, as its run found, or its middle."""
    if given is not None:
        return float(given)
    low, high = env.drift_range
    return float(row.get("drift", (low + high) / 2))


def versions() -> dict[str, str]:
    """Return the versions of what wrote a package."""
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    return {
        "crm-rl": checkpoint.version(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def git_revision() -> str | None:
    """Return the revision of this project's checkout, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

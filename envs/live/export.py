"""Write a trained policy as a package: a folder that decides without this project's training (docs/live.md)."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import platform
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.live.columns import DATES, NUMBERS, TEXT, Column, Range, read_columns
from envs.live.decide import Decide, DecisionInputs, Scores
from envs.live.examples import Examples, draw_inputs, draw_table, write_examples
from envs.live.package import EXAMPLES, GRAPH, MANIFEST, MANIFEST_SUM, OBSERVATION, Package, graph_notes
from envs.offers.env import OffersEnv
from envs.offers.evaluation.season_evaluator import SeasonEvaluator
from envs.offers.neural_twin.env import NeuralTwinEnv
from envs.offers.policies.redemption_model import RedemptionModel
from envs.offers.populations.base import Population
from envs.offers.populations.customer_table import CustomerTable
from envs.offers.populations.feature_transform import FeatureTransform
from envs.offers.twin.structural_model import TwinPopulation
from envs.offers.unlike.env import UnlikeEnv
from rlcore.action_values import GreedyPolicy
from rlcore.algorithm import Algorithm, NetworkAlgorithm
from rlcore.networks import Actor
from rlcore.runs import checkpoint

OPSET = 20  # of ONNX: the first with IsNaN, Max and Min in float64
EXAMPLE_PRICES = 4  # of the grid, at which examples have scores
TRACED = (3, 2)  # customers and prices of the inputs that the graph is traced with; both numbers stay open


# ── what can be exported ────────────────────────────────────────────────────────────────────────────────────────────
def check_exportable(env: Any, agent: Algorithm, source: str) -> None:
    """Raise ValueError, in one line, where no shop could use the policy."""
    if not isinstance(env, OffersEnv) or isinstance(env, (NeuralTwinEnv, UnlikeEnv)):
        raise ValueError(
            f"{source}: trained in {type(env).__name__}: expected a policy of env=offers, or of env=offers_twin with a "
            "structural twin, whose customers have the columns of a shop's"
        )
    if not env.codec.hides_state:
        raise ValueError(
            f"{source}: its observation shows {', '.join(env.codec.shows)}, and no shop sees habit, fatigue and "
            "expectation: expected a policy trained with env/observation=history or belief"
        )
    if not isinstance(agent, NetworkAlgorithm) or not isinstance(agent.policy, (Actor, GreedyPolicy)):
        raise ValueError(
            f"{source}: trained by {type(agent).__name__}: expected a policy of logits at a price or of action values, "
            "such as that of algo=ppo, ppo_expected, bandit, bcq or cql"
        )
    if not isinstance(agent.auxiliary, RedemptionModel):
        raise ValueError(
            f"{source}: trained without a model of what contacts cost: expected algo/auxiliary=redemption_model"
        )


# ── columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def columns_of(population: Population, env: OffersEnv) -> tuple[list[Column], FeatureTransform]:
    """Return the columns that a policy reads of a customer, and the transform of them into features.

    Customers of a table have the table's columns. All others have their features as columns of numbers, which are
    clipped to the range of training and env.clip_margin, as those of a log are.
    """
    if isinstance(population, TwinPopulation):
        return columns_of(population.base, env)
    if isinstance(population, CustomerTable):
        return table_columns(population), population.transform
    seen = env.seen_features
    low, high = env.static_limits()
    columns, numbers = [], {}
    for k in range(env.static_dim):
        is_seen = seen.low[k] <= seen.high[k]
        columns.append(Column(f"f{k}", NUMBERS, Range(seen.low[k].item(), seen.high[k].item()) if is_seen else None))
        numbers[f"f{k}"] = {
            "mean": 0.0,
            "sd": 1.0,
            "low": low[k].item() if is_seen else -MOST,
            "high": high[k].item() if is_seen else MOST,
            "median": 0.0,
            "has_gaps": False,
        }
    return columns, FeatureTransform({"numbers": numbers, "levels": {}})


MOST = float(torch.finfo(torch.float32).max)


def table_columns(population: CustomerTable) -> list[Column]:
    """Return the columns of a customer table that are features, with their ranges in training."""
    margin, columns = population.clip_margin, []
    for name, fitted in population.transform.numbers.items():
        width = (fitted["high"] - fitted["low"]) / (1 + 2 * margin)  # low and high are `margin` widths beyond the range
        seen = Range(fitted["low"] + margin * width, fitted["high"] - margin * width)
        kind = DATES if name in population.dates else NUMBERS
        columns.append(Column(name, kind, seen, may_be_missing=bool(fitted["has_gaps"])))
    for name in population.transform.levels:
        columns.append(Column(name, TEXT, as_text=name in population.text))
    return columns


# ── the graph ───────────────────────────────────────────────────────────────────────────────────────────────────────
def make_decide(env: OffersEnv, agent: NetworkAlgorithm, features: nn.Module) -> Decide:
    """Put together the policy of an algorithm and all that lies between columns and its preferences."""
    assert isinstance(agent.auxiliary, RedemptionModel)  # check_exportable sees to it
    networks = [agent.network, agent.auxiliary.net]
    return Decide(agent.policy, agent.auxiliary, env.codec, env.world.catalogue, features, networks).eval()


def to_onnx(decide: Decide, inputs: DecisionInputs, prices: Tensor, drift: float, notes: dict[str, str]) -> bytes:
    """Return an ONNX graph of any numbers of customers and prices; `notes` become its metadata."""
    onnx = onnx_package()
    customers, grid = torch.export.Dim("customers"), torch.export.Dim("prices")
    shapes: dict[str, Any] = {name: {0: customers} for name in DecisionInputs._fields}
    shapes |= {"week": {}, "prices": {0: grid}, "drift": {}}
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            decide,
            (*inputs, prices, torch.tensor(drift)),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(shapes),
            output_names=list(Scores._fields),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, text in notes.items():
        model.metadata_props.add(key=key, value=text)
    out = io.BytesIO()
    onnx.save(model, out)
    return out.getvalue()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what PyTorch's exporter says of its own steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def onnx_package():
    """Import onnx, which an export needs; raise ValueError where it or onnxscript is not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ValueError(
            f"policies are exported by onnx and onnxscript, which are not installed: pip install -e '.[live]' ({error})"
        ) from error
    return onnx


# ── the folder ──────────────────────────────────────────────────────────────────────────────────────────────────────
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
        "last_price": (row.get("prices") or [None])[-1],
        "versions": versions(),
        "git_revision": git_revision(),
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
    }
    text = (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    files[MANIFEST] = text
    files[MANIFEST_SUM] = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()

    def write(folder: Path) -> None:
        for file, data in files.items():
            (folder / file).write_bytes(data)
        Package.load(folder)

    checkpoint.atomic_folder(out, write)
    return Package.load(out)


def package_files(
    env: OffersEnv, agent: NetworkAlgorithm, config: dict[str, Any], seed: int, drift: float
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return a package's files, but for its package.json, and the parts of package.json that its reader needs."""
    columns, transform = columns_of(env.population, env)
    decide = make_decide(env, agent, transform.to_module())
    evaluator = env.evaluation(env)
    assert isinstance(evaluator, SeasonEvaluator)  # that of an OffersEnv
    prices = evaluator.prices.float()
    today = "2000-01-01" if any(column.kind == DATES for column in columns) else None
    table = draw_table(columns, transform, today, seed)
    read = read_columns(table, columns, transform, source="examples", separator=",", today=today)
    features = transform.to_module()(read.numbers, read.levels).float()
    catalogue, num_caps = env.world.catalogue, env.contact_rules.num_cap_features
    weeks = draw_inputs(read, features, env.codec, catalogue, num_caps, seed)
    few = prices[torch.linspace(0, len(prices) - 1, EXAMPLE_PRICES).long()]
    with torch.no_grad():
        scores = [decide(*inputs, few, torch.tensor(drift)) for inputs in weeks]
    manifest = {
        "columns": [column._asdict() for column in columns],
        "transform": transform.state_dict(),
        "num_features": env.static_dim + num_caps,
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

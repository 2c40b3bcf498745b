"""A package: the folder of an exported policy, read, verified and asked for decisions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from envs.configuration import REFERENCE, instantiate_stored
from envs.live.columns import Column, Range, TableColumns, read_columns
from envs.live.decide import DecisionInputs, Scores
from envs.live.examples import check_examples, read_examples
from envs.live.package_files import EXAMPLES, GRAPH, MANIFEST, OBSERVATION, graph_notes, read_files
from envs.offers.constraints.contact_caps import cap_columns
from envs.offers.constraints.contact_rules import read_cap
from envs.offers.populations.feature_transform import FeatureTransform
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CustomerState, World
from envs.offers.world.history import PassedWeek, SeenWeek
from envs.offers.world.observation import ObservationCodec, ViewSetting
from rlcore.runs import checkpoint

if TYPE_CHECKING:
    from envs.live.plan.run import Planned

#: modules whose classes a package's configuration may name
PARTS_OF_A_WORLD = (
    "envs.offers.world.",
    "envs.offers.rewards.",
    "envs.offers.populations.parameter_regression.",
    "envs.offers.twin.theta_estimate.",
)
CELLS = 49_152  # customers × prices scored at once, and
LEAST, MOST = 1024, 4096  # customers: few for a CPU's caches, many beside the cost of a call


def runtime():
    """Import onnxruntime, which packages need; raise ValueError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"exported policies are run by onnxruntime, which is not installed: pip install -e '.[live]' ({error})"
        ) from error
    return onnxruntime


class Package:
    """An exported policy.

    Nothing in the folder is run but the graph, by onnxruntime, and classes of this project that its configuration
    names (envs/configuration.py).
    """

    folder: Path
    manifest: dict[str, Any]  #: package.json
    columns: list[Column]  #: that the policy reads of a customer, in the order of its inputs
    catalogue: Catalogue
    contact_rules: dict  #: conf/env/contact_rules as it was in training
    prices: Tensor  #: grid of falling prices, float32 [G]
    drift: float  #: weekly change of the log price that the policy is told
    weeks: int  #: of a season
    codec: ObservationCodec  #: carries memory from week to week

    def __init__(self, folder: Path, manifest: dict[str, Any], files: dict[str, bytes], threads: int):
        env = manifest["env"]
        source = str(folder / MANIFEST)
        self.folder, self.manifest = folder, manifest
        self.transform = FeatureTransform(manifest["transform"])
        self.columns = [to_column(x) for x in manifest["columns"]]
        self.contact_rules = env["contact_rules"]
        self.prices = torch.tensor(manifest["prices"], dtype=torch.float32)
        self.drift = float(manifest["drift"])
        for part in ("catalogue", "world", "reward", "observation"):
            if not isinstance(env[part], dict):  # OmegaConf would read a text as YAML, after the check
                raise ValueError(f"{source}: env.{part}: expected an object, got {type(env[part]).__name__}")
            check_parts(env[part], f"{source}: env.{part}")
        catalogue = instantiate_stored(env["catalogue"], source)
        self.world: World = instantiate_stored(env["world"], source)(
            catalogue, instantiate_stored(env["reward"], source)
        )
        self.world = self.world.to(torch.device("cpu"), torch.float32)
        self.catalogue, self.weeks = self.world.catalogue, self.world.weeks
        setting = ViewSetting(manifest["num_features"], self.world, None, env["price_range"], env["drift_range"])
        self.codec = instantiate_stored(env["observation"], source)(setting)
        if OBSERVATION in files:
            self.codec.load_state_dict(torch.load(io.BytesIO(files[OBSERVATION]), weights_only=True))
        self._to_features = self.transform.to_module()
        options = runtime().SessionOptions()
        options.intra_op_num_threads = threads
        self._session = runtime().InferenceSession(files[GRAPH], options, providers=["CPUExecutionProvider"])
        self._inputs = {x.name for x in self._session.get_inputs()}
        written_for = self._session.get_modelmeta().custom_metadata_map
        for part, digest in graph_notes(manifest).items():
            if written_for.get(part) != digest:
                raise ValueError(f"{MANIFEST} has another {part} than {GRAPH} was written for")

    @classmethod
    def load(cls, folder: Path | str, *, threads: int = 1) -> Package:
        """Read a package and verify it; raise ValueError, in one line, where it is not as it was written.

        Checksums of all files must agree, and onnxruntime must find the scores of the examples again.
        """
        folder = Path(folder)
        if not folder.is_dir():
            checkpoint.sweep(folder.parent)  # a killed writer may have moved it away
        manifest, files = read_files(folder)
        try:
            package = cls(folder, manifest, files, threads)
            examples = read_examples(files[EXAMPLES], manifest["examples"], package)
            check_examples(package, examples)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        except Exception as error:  # whatever a made-up graph or configuration leads to
            line = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{folder}: not a package of this project ({type(error).__name__}: {line})") from error
        return package

    # ── a customer's columns ────────────────────────────────────────────────────────────────────────────────────────
    def read(
        self, table: Any, *, source: str = "table", separator: str = ",", today: str | None = None
    ) -> TableColumns:
        """Read a table's columns by their names and hold them to the ranges of training (envs/live/columns.py).

        `table` is the path of a CSV or Parquet file, a pyarrow.Table, or what makes one, such as a dictionary.
        """
        return read_columns(table, self.columns, self.transform, source=source, separator=separator, today=today)

    def features(self, columns: TableColumns) -> Tensor:
        """Return the features of customers, float32 [N, F]."""
        return self._to_features(columns.numbers, columns.levels).float()

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def start_memory(self, customers: int) -> Tensor:
        """Return the memory of customers at the start of a season, float32 [N, M]."""
        return self.codec.start_memory(torch.zeros(customers, self.manifest["num_features"]))

    def remember(self, memory: Tensor, features: Tensor, week: int, seen: SeenWeek) -> Tensor:
        """Return the memory [N, M] after a week of the season (from 0), of customers with features [N, F]."""
        return self.codec.remember(memory, features, PassedWeek(week, seen, *2 * [no_states(len(memory))]))

    def next_season(self, memory: Tensor) -> Tensor:
        """Return the memory [N, M] with which customers go from the end of a season into the next one.

        A policy that learned from a log of several seasons has seen frequency and recency go on; one that learned in a
        simulator has seen every season begin without them.
        """
        return self.codec.next_season(memory) if self.manifest["learned_from_log"] else self.codec.season_anew(memory)

    @property
    def observes_price(self) -> bool:
        """Whether logits are those of a policy that is told the price; if not, action values less price · spend."""
        return self.manifest["observes_price"]

    def subscribed(self, memory: Tensor) -> Tensor:
        """Customers who have not opted out, bool [N]."""
        return self.codec.subscribed(no_states(len(memory)), memory)

    # ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def num_cap_columns(self) -> int:
        """Number of columns with what is left of the contact caps, now and in later weeks."""
        return len(cap_columns(read_cap(cap) for cap in self.contact_rules["caps"]))

    def inputs(
        self,
        columns: TableColumns,
        week: int,
        *,
        memory: Tensor | None = None,
        caps_left: Tensor | None = None,
        action_mask: Tensor | None = None,
    ) -> DecisionInputs:
        """Put together what a decision depends on.

        Without a memory customers stand at the start of a season; without `caps_left` nobody was contacted; without an
        action mask all pairs of the catalogue may be sent to who has not opted out.
        """
        if not 0 <= week < self.weeks:
            raise ValueError(f"week: expected 0 to {self.weeks - 1}, got {week}")
        n = columns.num_customers
        memory = self.start_memory(n) if memory is None else memory
        caps_left = torch.ones(n, self.num_cap_columns) if caps_left is None else caps_left
        if action_mask is None:
            contactable = self.subscribed(memory) & (caps_left > 0).all(1)
            action_mask = self.catalogue.action_mask(contactable).flatten(1)
        return DecisionInputs(columns.numbers, columns.levels, memory, caps_left, torch.tensor(week), action_mask)

    def score(self, inputs: DecisionInputs, prices: Tensor | None = None, drift: float | None = None) -> Scores:
        """Score customers at prices [G] (None: the grid) of a weekly drift (None: the package's), by onnxruntime."""
        prices = self.prices if prices is None else prices.float()
        drift = self.drift if drift is None else drift
        parts = []
        size = min(max(CELLS // len(prices), LEAST), MOST)
        for first in range(0, max(inputs.num_customers, 1), size):  # nobody, too, has scores of the right shape
            batch = inputs.take(slice(first, first + size))
            feed: dict[str, np.ndarray] = {name: x.numpy() for name, x in batch._asdict().items()}
            feed |= {"prices": prices.numpy(), "drift": np.array(drift, dtype=np.float32)}
            parts.append(self._session.run(None, {name: x for name, x in feed.items() if name in self._inputs}))
        logits, spend = zip(*parts)
        return Scores(torch.from_numpy(np.concatenate(logits, 1)), torch.from_numpy(np.concatenate(spend, 0)))

    def decide(
        self,
        table: Any,
        *,
        week: int,
        memory: Tensor | None = None,
        caps_left: Tensor | None = None,
        action_mask: Tensor | None = None,
        prices: Tensor | None = None,
        today: str | None = None,
    ) -> Scores:
        """Score the customers of a table; `read`, `inputs` and `score` in one."""
        columns = self.read(table, today=today)
        return self.score(
            self.inputs(columns, week, memory=memory, caps_left=caps_left, action_mask=action_mask), prices
        )

    def plan(self, table: Any, **keys: Any) -> Planned:
        """Plan a week, as in plan("customers.csv", money=5000, week=18) (envs/live/plan/python_api.py)."""
        from envs.live.plan.python_api import plan  # which reads packages itself

        return plan(self, table, **keys)


def check_parts(config: Any, source: str) -> None:
    """Raise ValueError where nested containers name a class that is no part of a world or of a view of it.

    Of this project's own classes some open files and databases: a package must not call these. References, which
    OmegaConf would resolve, could hide a class, so they are refused too.
    """
    if isinstance(config, str) and REFERENCE in config:
        raise ValueError(f"{source}: has a reference, {config!r}, and a package has none")
    if isinstance(config, dict):
        target = config.get("_target_", PARTS_OF_A_WORLD[0])
        if not str(target).startswith(PARTS_OF_A_WORLD):
            raise ValueError(f"{source}: names {target}, which is no part of a world or of an observation")
        config = list(config.values())
    if isinstance(config, list):
        for x in config:
            check_parts(x, source)


def to_column(entry: dict[str, Any]) -> Column:
    """Read an entry of package.json's columns."""
    seen = entry["seen"]
    return Column(**{**entry, "seen": None if seen is None else Range(*seen)})


def no_states(n: int) -> CustomerState:
    """Return states that nobody reads, [N] each: a view that hides the state is given none."""
    nothing = torch.zeros(n, dtype=torch.long)
    return CustomerState(nothing, nothing, nothing, nothing)

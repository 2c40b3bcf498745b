"""The examples of a package: made-up customers with their scores, by which a package is verified where it is loaded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.live.columns import DATES, TEXT, Column, TableColumns, read_columns
from envs.live.decide import DecisionInputs, Scores
from envs.offers.populations.feature_transform import EMPTY, FeatureTransform
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CustomerState
from envs.offers.world.history import PassedWeek, SeenWeek
from envs.offers.world.observation import ObservationCodec
from rlcore.offline.file_columns import arrow

if TYPE_CHECKING:
    from envs.live.package import Package

ROWS = 256
UNKNOWN = "a text that training did not have"
LOGIT_TOLERANCE, SPEND_TOLERANCE = 1e-4, 1e-5  # by which scores may differ from one runtime or processor to another
INPUT = "input: "  # before the name of a customer's column, so that no column has the name of another part


class Examples(NamedTuple):
    """Made-up customers, those of a week together, and their scores at a few prices."""

    weeks: list[DecisionInputs]
    scores: list[Scores]
    prices: Tensor  # [G]
    drift: float


class Scorer(Protocol):
    """What scores examples."""

    def __call__(self, inputs: DecisionInputs, prices: Tensor, drift: float) -> Scores:
        """Score customers at prices [G] of a weekly drift."""


# ── drawn when a policy is exported ─────────────────────────────────────────────────────────────────────────────────
def draw_table(columns: list[Column], transform: FeatureTransform, today: str | None, seed: int, customers: int = ROWS):
    """Draw the columns of made-up customers, as a pyarrow.Table; no real customer's row leaves a shop with a package.

    Every level comes, an unknown one and an empty text too. Numbers lie in the range of training and, of one customer
    in eight, up to the limits beyond it; where training had gaps, one in eight is missing.
    """
    pa = arrow()
    random = np.random.default_rng(seed)
    n = max([customers, *(len(levels) + 2 for levels in transform.levels.values())])
    found = {}
    for column in columns:
        if column.kind == TEXT:
            levels = ["" if x == EMPTY else x for x in transform.levels[column.name]]
            choices = [*levels, UNKNOWN, ""]
            order = random.permutation(n)
            found[column.name] = pa.array([choices[k % len(choices)] for k in order], pa.string())
            continue
        numbers = draw_numbers(column, n, random)
        if column.kind == DATES:
            days = np.datetime64(today, "D") - np.where(np.isnan(numbers), 0, numbers).round().astype("timedelta64[D]")
            found[column.name] = pa.array(days, pa.date32(), mask=np.isnan(numbers))
        else:
            found[column.name] = pa.array(numbers, mask=np.isnan(numbers))
    return pa.table(found)


def draw_numbers(column: Column, n: int, random: np.random.Generator) -> np.ndarray:
    """Draw the numbers of a column, [N], NaN: missing."""
    if column.seen is None:
        numbers = random.standard_normal(n)
    else:
        low, high = column.seen
        numbers = random.uniform(low, high, n)
        is_whole = float(low).is_integer() and float(high).is_integer()
        numbers = numbers.round() if is_whole else numbers
        width = column.seen.width
        is_beyond = random.random(n) < 1 / 8
        beyond = np.where(random.random(n) < 0.5, low - width, high + width)
        numbers = np.where(is_beyond, beyond, numbers)
    if column.may_be_missing:
        numbers[random.random(n) < 1 / 8] = np.nan
    return numbers


def draw_inputs(
    columns: TableColumns,
    features: Tensor,
    codec: ObservationCodec,
    catalogue: Catalogue,
    num_cap_columns: int,
    seed: int,
) -> list[DecisionInputs]:
    """Give made-up customers a past of random sends, cap shares and masks; return those of each week of the season.

    One in sixteen has opted out, and one in sixteen has no contact left.
    """
    generator = torch.Generator().manual_seed(seed)
    n, actions = columns.num_customers, catalogue.action_codec
    memory = codec.start_memory(features)
    nothing = torch.zeros(n, dtype=torch.long)
    states = CustomerState(nothing, nothing, nothing, nothing)
    inputs = []
    for week in range(codec.weeks):
        opted_out = torch.arange(n) % 16 == 0
        capped = torch.arange(n) % 16 == 1
        rows = torch.arange(week, n, codec.weeks)
        caps_left = torch.rand(n, num_cap_columns, generator=generator).masked_fill(capped[:, None], 0.0)
        action_mask = catalogue.action_mask(~opted_out & ~capped).flatten(1)
        action_mask = action_mask & (torch.rand(action_mask.shape, generator=generator) < 0.8)
        action_mask[:, 0] = True
        seen_memory = memory.clone()
        seen_memory[:, 0] = torch.where(opted_out, 1.0, seen_memory[:, 0])
        whole = DecisionInputs(columns.numbers, columns.levels, seen_memory, caps_left, torch.tensor(week), action_mask)
        inputs.append(whole.take(rows))
        sent = torch.randint(actions.num_actions, (n,), generator=generator)
        sent = torch.where(actions.is_contact(sent), sent, 0)
        bought = torch.rand(n, generator=generator) < 0.4
        seen = SeenWeek(
            offer=actions.offer_of(sent),
            channel=actions.channel_of(sent),
            bought=bought,
            redeemed=bought & actions.is_contact(sent) & (torch.rand(n, generator=generator) < 0.5),
            opted_out=torch.zeros(n, dtype=torch.bool),
            margin=bought * torch.rand(n, generator=generator) * 20,
        )
        memory = codec.remember(memory, features, PassedWeek(week, seen, states, states))
    return inputs


# ── in a file ───────────────────────────────────────────────────────────────────────────────────────────────────────
def write_examples(table, examples: Examples, weeks: int) -> bytes:
    """Return the bytes of a Parquet file of the customers' columns, what else a decision depends on, and the scores."""
    pa = arrow()
    n = table.num_rows
    rows = torch.cat([torch.arange(week, n, weeks) for week in range(len(examples.weeks))])
    parts: dict[str, Any] = {}
    for name in ("memory", "caps_left", "action_mask"):
        parts[name] = torch.cat([x._asdict()[name] for x in examples.weeks])
    parts["week"] = torch.cat([x.week.expand(x.num_customers) for x in examples.weeks])
    parts["logits"] = torch.cat([x.logits.transpose(0, 1).flatten(1) for x in examples.scores])
    parts["spend"] = torch.cat([x.spend for x in examples.scores])
    arrays = {f"{INPUT}{name}": table.column(name).take(pa.array(rows.numpy())) for name in table.column_names}
    for name, x in parts.items():
        arrays[name] = pa.array(x.numpy()) if x.dim() == 1 else pa.array(list(x.numpy()), pa.list_(TYPES[x.dtype]()))
    out = io.BytesIO()
    pa.parquet.write_table(pa.table(arrays), out)
    return out.getvalue()


class _Types:
    """The types of a Parquet file for those of tensors."""

    def __getitem__(self, dtype: torch.dtype):
        pa = arrow()
        return {torch.float32: pa.float32, torch.bool: pa.bool_}[dtype]


TYPES = _Types()


def read_examples(data: bytes, setting: dict[str, Any], package: Package) -> Examples:
    """Read the file of `write_examples`; `setting` has prices, drift, and the date that days count to."""
    table = arrow().parquet.read_table(io.BytesIO(data))
    names = [name for name in table.column_names if name.startswith(INPUT)]
    raw = table.select(names).rename_columns([name.removeprefix(INPUT) for name in names])
    columns = read_columns(
        raw, package.columns, package.transform, source="its examples", separator=",", today=setting["today"]
    )
    prices = torch.tensor(setting["prices"], dtype=torch.float32)
    n, pairs = table.num_rows, package.catalogue.action_codec.num_actions

    def matrix(name: str, width: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor(table.column(name).combine_chunks().flatten().to_numpy(False)).to(dtype).view(n, width)

    week = torch.tensor(table.column("week").to_numpy())
    whole = DecisionInputs(
        columns.numbers,
        columns.levels,
        matrix("memory", package.codec.memory_dim, torch.float32),
        matrix("caps_left", package.num_cap_columns, torch.float32),
        week,
        matrix("action_mask", pairs, torch.bool),
    )
    logits = matrix("logits", len(prices) * pairs, torch.float32).view(n, len(prices), pairs)
    spend = matrix("spend", pairs, torch.float32)
    weeks, scores = [], []
    for number in week.unique():
        rows = (week == number).nonzero()[:, 0]
        weeks.append(whole.take(rows)._replace(week=number))
        scores.append(Scores(logits[rows].transpose(0, 1), spend[rows]))
    return Examples(weeks, scores, prices, float(setting["drift"]))


def check_examples(package: Package, examples: Examples) -> None:
    """Raise ValueError where the package's graph does not find the scores of the examples again."""
    logits, spend = largest_differences(examples, package.score)
    if not (logits <= LOGIT_TOLERANCE and spend <= SPEND_TOLERANCE):
        raise ValueError(
            f"its graph does not find the scores of its examples again: logits differ by {logits:.1e} and spend by "
            f"{spend:.1e}, expected at most {LOGIT_TOLERANCE:g} and {SPEND_TOLERANCE:g}"
        )


def largest_differences(examples: Examples, score: Scorer) -> tuple[float, float]:
    """Return the largest differences of logits and spend of a scorer; infinite where other pairs are masked."""
    logits, spend = 0.0, 0.0
    for inputs, expected in zip(examples.weeks, examples.scores):
        found = score(inputs, examples.prices, examples.drift)
        if found.logits.shape != expected.logits.shape or found.spend.shape != expected.spend.shape:
            return float("inf"), float("inf")
        is_finite = expected.logits.isfinite()
        if not torch.equal(found.logits.isfinite(), is_finite):
            return float("inf"), float("inf")
        logits = max(logits, (found.logits - expected.logits)[is_finite].abs().max().item())
        spend = max(spend, (found.spend - expected.spend).abs().max().item())
    return logits, spend

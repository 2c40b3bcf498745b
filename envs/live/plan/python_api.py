"""The plan of a week from Python, as scripts/plan.py makes it."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from envs.configuration import CONF
from envs.live.package import Package
from envs.live.plan.inputs.exported import ExportedPolicy
from envs.live.plan.run import REQUEST_KEYS, Planned, PlanRequest, make_plan
from envs.range_checks import check_ranges
from envs.value_ranges import ConfigPart, ranges_of


def default_keys() -> dict[str, Any]:
    """Return what conf/plan.yaml asks for."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "plan.yaml"))
    assert isinstance(defaults, dict)
    return {name: defaults[name] for name in REQUEST_KEYS}


def plan(package: Package, table: Any, **keys: Any) -> Planned:
    """Plan a week; `keys` are those of conf/plan.yaml, such as money=5000, week=18, log="log.parquet".

    `table` is the path of the customers' file, a pyarrow.Table, or anything that pyarrow makes a table of, such as a
    dictionary of columns. Nothing is written: `planned.table()` has the rows, and `planned.write()` writes the files.
    Raises ValueError, in one line, for a key or value that does not fit.
    """
    known = default_keys()
    unknown = [name for name in keys if name not in known or name == "customers"]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such key; there are {', '.join(known)}")
    for name in ("arms", "shop_rule", "forecast"):
        given = keys.get(name, {})
        if not isinstance(given, dict) or set(given) - set(known[name]):
            raise ValueError(f"{name}: expected some of {', '.join(known[name])}, got {given}")
        keys[name] = {**known[name], **keys.get(name, {})}
    chosen = {**known, **keys}
    ranges = ranges_of([ConfigPart(CONF / "plan.yaml", "")])
    check_ranges({name: x for name, x in chosen.items() if name != "customers"}, ranges)
    return make_plan(ExportedPolicy(package), PlanRequest(**{**chosen, "customers": table}))

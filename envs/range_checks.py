"""Configurations held against the ranges of conf/ (envs/value_ranges.py)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs.value_ranges import FLOAT32_MAX, INT64_MAX, SELF, ConfigPart, Interval, KeyRanges, range_of, ranges_of


def values_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of all lists and scalars in nested containers; elements of lists are keys 0, 1, …."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        if not isinstance(value, dict):
            yield f"{prefix}{name}", value
        if isinstance(value, (dict, list)):
            yield from values_of(value, f"{prefix}{name}.")


def check_ranges(config: Any, ranges: dict[str, KeyRanges]) -> None:
    """Raise ValueError, in one line that names the key, where a value of a configuration is out of its range."""
    config = plain(config)
    for key, value in values_of(config):
        interval = range_of(key, ranges)
        if interval is not None:
            check_value(key, value, interval, is_own=SELF in ranges.get(key, KeyRanges()).by_name)


def check_value(key: str, value: Any, interval: Interval, is_own: bool) -> None:
    """Raise ValueError where a number, or the length of a list whose own range it is, does not suit."""
    if isinstance(value, list):
        if is_own and not interval.admits_length(len(value)):
            number = f"{interval.count} {'or more ' * interval.or_more}elements"
            raise ValueError(f"{key}: expected {number}, each {interval}, got {value}")
    elif value != "???" and value not in interval:
        raise ValueError(f"{key}: expected {interval}, got {shown(value, interval)}")


def check_stored_ranges(config: Any, conf: Path, source: str) -> None:
    """Check a configuration out of a file, of which the choices are not known: a number must suit one of the options.

    Raises ValueError, in one line that names the file and the key.
    """
    options = [ranges_of([part]) for part in group_files(conf)]
    for key, value in values_of(plain(config)):
        intervals = [found for ranges in options if (found := range_of(key, ranges)) is not None]
        scalar = not isinstance(value, list) and value != "???"
        if scalar and intervals and not any(value in interval for interval in intervals):
            raise ValueError(f"{source}: {key}: expected {intervals[0]}, got {shown(value, intervals[0])}")


def group_files(conf: Path) -> list[ConfigPart]:
    """Return the files of conf/algo and conf/env, each below the key of its folder or of its `# @package`."""
    parts = []
    for path in sorted([*conf.glob("algo/**/*.yaml"), *conf.glob("env/**/*.yaml")]):
        header = re.match(r"# @package (\S+)", path.read_text())
        parts.append(ConfigPart(path, header[1] if header else ".".join(path.relative_to(conf).parent.parts)))
    return parts


def plain(config: Any) -> Any:
    """Resolve a configuration into dicts and lists. Raises ValueError where a reference leads nowhere."""
    try:
        return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def shown(value: Any, interval: Interval) -> str:
    """Write a value as YAML does, and say what is wrong with it where the interval alone does not."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"'{value}'"
    if interval.whole and isinstance(value, float) and value.is_integer() and abs(value) < INT64_MAX:
        return f"{value}; write {int(value)}"
    if math.inf > abs(value) > (INT64_MAX if interval.whole else FLOAT32_MAX):
        return f"{value}, which {'int64' if interval.whole else 'float32'} can't hold"
    return str(value)

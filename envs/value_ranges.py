"""Ranges of the numbers in conf/: each stands in the comment of the number's own line, and holds for every run.

    gamma: 0.99  # [0, 1]: discount of a step
    minibatches: 4  # int [1, inf): of an epoch
    clip_value: null  # null or (0, inf): null is plain squared error
    rule: {z: 2.0, sends: 7}  # z [0, inf), sends int [1, 7]: of a mapping in one line, by key
    sizes: {a: 1, b: 2}  # each int [1, inf), open: of all numbers below; `open` admits further keys

An interval is written as in mathematics. The interval of a list holds for each element, and `2 of` or `1+ of` before it
is the number of elements. A bound may be `inf`, or a power such as `2^63`. Infinity and nan are in no interval, and
neither is a number that float32 can't hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

try:
    from yaml import CSafeLoader as YamlLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as YamlLoader

INTERVAL = re.compile(
    r"(?P<null>null or )?(?:(?P<count>\d+)(?P<more>\+?) of )?(?P<whole>int )?"
    r"(?P<left>[\[(])(?P<low>[^,\[\]()]+), (?P<high>[^,\[\]()]+)(?P<right>[\])])"
)
ITEM = re.compile(rf"(?:(?P<open>open)|(?:(?!int |null |\d)(?P<name>[\w.]+) )?{INTERVAL.pattern})(?=, |:|$)")
SELF, EACH = "", "each"  #: names of a range: of the key itself, of every number below
FLOAT32_MAX = 3.4028234663852886e38
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Interval:
    """The values that a key may take: numbers from `low` to `high`, whole ones if `whole`, and null if `nullable`."""

    low: float
    high: float
    has_low: bool
    has_high: bool
    whole: bool
    nullable: bool
    count: int | None  # numbers of a list; None: any
    or_more: bool
    text: str

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return self.nullable
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not abs(value) <= (INT64_MAX if self.whole else FLOAT32_MAX):  # nan is in no order
            return False
        above = value >= self.low if self.has_low else value > self.low
        below = value <= self.high if self.has_high else value < self.high
        return above and below

    def __str__(self) -> str:
        bounds = re.sub("^.*?(?=[\\[(])", "", self.text)
        return f"{'null or ' * self.nullable}a {'whole ' * self.whole}number in {bounds}"

    def admits_length(self, length: int) -> bool:
        """Tell whether a list may have so many numbers."""
        return self.count is None or length == self.count or (self.or_more and length > self.count)


@dataclass
class KeyRanges:
    """What the comment of a key says: ranges by name (SELF, EACH or a key below), and whether keys may be added."""

    by_name: dict[str, Interval] = field(default_factory=dict)
    is_open: bool = False


class ConfigPart(NamedTuple):
    """A file of a composed configuration: its path, and the key below which its own keys stand."""

    path: Path
    package: str


def parse_interval(text: str) -> Interval:
    """Read an interval, such as `null or int [1, 2^31)`. Raises ValueError where the text is none."""
    found = INTERVAL.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}': expected an interval, as in [0, 1], int [1, inf) or null or (0, inf)")
    low, high = bound(found["low"]), bound(found["high"])
    if low > high:
        raise ValueError(f"'{text}': expected an interval whose first bound is not above the second")
    return Interval(
        low=low,
        high=high,
        has_low=found["left"] == "[" and math.isfinite(low),
        has_high=found["right"] == "]" and math.isfinite(high),
        whole=found["whole"] is not None,
        nullable=found["null"] is not None,
        count=int(found["count"]) if found["count"] else None,
        or_more=bool(found["more"]),
        text=text,
    )


def bound(text: str) -> float:
    """Read a bound: a number, `inf`, or a power such as 2^63."""
    base, _, exponent = text.partition("^")
    return int(base) ** int(exponent) if exponent else float(text)


def parse_comment(text: str) -> KeyRanges:
    """Read what a comment says of ranges; one that begins otherwise says nothing."""
    ranges = KeyRanges()
    position = 0
    while item := ITEM.match(text, position):
        if item["open"]:
            ranges.is_open = True
        else:
            name = item["name"] or SELF
            start = item.end("name") + 1 if item["name"] else item.start()
            ranges.by_name[name] = parse_interval(text[start : item.end()])
        if not text.startswith(", ", item.end()):
            break
        position = item.end() + 2
    return ranges


@cache
def read_file(path: Path) -> dict[str, KeyRanges]:
    """Read the ranges of a YAML file, by the path of the key whose line they stand in (dots between keys)."""
    text = path.read_text()
    lines = text.splitlines()
    keys = list(keys_below(yaml.compose(text, Loader=YamlLoader), ""))
    ranges: dict[str, KeyRanges] = {}
    seen: set[int] = set()
    for key, line, _ in keys:
        if line in seen:  # a key within a one-line mapping: the comment belongs to the line's first
            continue
        seen.add(line)
        found = parse_comment(lines[line].partition(" # ")[2].strip())
        if found.by_name or found.is_open:
            ranges[key] = found
    scalars = [key for key, _, value in keys if not isinstance(value, yaml.MappingNode)]
    for key, found in list(ranges.items()):
        if EACH in found.by_name and not found.is_open:  # the keys that are here, not those of another file
            each = found.by_name.pop(EACH)
            for below in (other for other in scalars if other.startswith(f"{key}.")):
                if range_of(below, ranges) is None:
                    ranges[below] = KeyRanges({SELF: each})
    return ranges


def keys_below(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield (path of a key, number of its line, value) of all mappings below a node, outer ones first."""
    if isinstance(node, yaml.SequenceNode):
        for place, child in enumerate(node.value):
            yield from keys_below(child, f"{prefix}{place}.")
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        yield path, key.start_mark.line, value
        yield from keys_below(value, f"{path}.")


def ranges_of(parts: Iterable[ConfigPart]) -> dict[str, KeyRanges]:
    """Merge the ranges of the files that a configuration is composed of, by whole keys; a later file's hold."""
    merged: dict[str, KeyRanges] = {}
    for path, package in parts:
        for key, found in read_file(path).items():
            whole = f"{package}.{key}" if package else key
            known = merged.get(whole, KeyRanges())
            merged[whole] = KeyRanges({**known.by_name, **found.by_name}, known.is_open or found.is_open)
    return merged


def range_of(key: str, ranges: dict[str, KeyRanges]) -> Interval | None:
    """Return the range of a key: its own, or that which the nearest mapping or list above states for it."""
    names = key.split(".")
    for depth in range(len(names), 0, -1):
        found = ranges.get(".".join(names[:depth]))
        if found is None:
            continue
        below = names[depth:]
        said = [name for name in (*reversed(below), SELF, *([EACH] if below else ())) if name in found.by_name]
        if said:
            return found.by_name[said[0]]
    return None


def is_open(key: str, ranges: dict[str, KeyRanges]) -> bool:
    """Tell whether a key is below a mapping to which keys may be added."""
    names = key.split(".")
    above = (".".join(names[:depth]) for depth in range(1, len(names)))
    return any(path in ranges and ranges[path].is_open for path in above)

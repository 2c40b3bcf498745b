"""Ranges: every number of conf/ has one beside it, and a value that is out of it is refused in one line."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from configs import CONF, composed
from envs.range_checks import check_ranges, check_stored_ranges, values_of
from envs.value_ranges import KeyRanges, parse_comment, parse_interval, range_of, ranges_of, read_file
from faulty_numbers import FAULTY_NUMBERS
from scripts.shared.overrides import config_parts

FILES = {str(path.relative_to(CONF)): read_file(path) for path in sorted(CONF.rglob("*.yaml"))}
PROBES = (None, -1, 0, math.nan, 1e308, "x")
SCRIPTS = [
    ("train", "algo=ppo", "env=offers"),
    ("train", "algo=bandit", "env=offers"),
    ("train", "algo=bcq", "env=offers"),
    ("train", "algo=cql", "env=offers"),
    ("train", "algo=twin", "env=offers"),
    ("train", "algo=ppo", "env=offers_sequential"),
    ("train", "algo=ppo_kl", "env=email"),
    ("train", "algo=reward_model", "env=email"),
    ("train", "algo=ppo", "env=gymnasium"),
    ("collect", "logging_policy=uplift"),
    ("evaluate", "env=offers"),
    ("import_sends",),
    ("test_size",),
    ("plan",),
    ("uplift",),
    ("write_email",),
    *(
        ("bench", f"benchmark={path.relative_to(CONF / 'benchmark').with_suffix('')}")
        for path in sorted(CONF.glob("benchmark/**/*.yaml"))
    ),
]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def composed_ranges(name: str, *overrides: str) -> dict[str, KeyRanges]:
    """Return the ranges of the files that a script's configuration is composed of."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return ranges_of(config_parts(name, list(overrides)))


def admits(text: str, value: Any) -> bool:
    """Say by the words of a range whether it holds a value: what check_ranges is compared with."""
    if value is None:
        return text.startswith("null or ")
    if not is_number(value) or math.isnan(value) or abs(value) > 1e300:
        return False
    interval = text[min(place for place in map(text.find, "[(") if place >= 0) :]
    low, high = (
        float(eval(bound.replace("^", "**").replace("inf", "math.inf"))) for bound in interval[1:-1].split(",")
    )
    return (low <= value if interval[0] == "[" else low < value) and (
        value <= high if interval[-1] == "]" else value < high
    )


@pytest.mark.parametrize("file", FILES)
def test_every_number_has_its_range_beside_it_and_lies_in_it(file):
    for key, value in values_of(OmegaConf.to_container(OmegaConf.load(CONF / file))):
        interval = range_of(key, FILES[file])
        if is_number(value):
            assert interval is not None, f"{key}: no range in the comment of its line"
        if interval is not None and isinstance(value, list):
            assert interval.admits_length(len(value)), key
        elif interval is not None and not isinstance(value, str):  # a reference is checked where it leads
            assert value in interval, f"{key}: {value} is not in {interval.text}"


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS, ids="-".join)
def test_a_value_is_refused_where_its_range_does_not_hold_it(script):
    name, *overrides = script
    config = OmegaConf.to_container(composed(*overrides, name=name), resolve=True)
    ranges = composed_ranges(name, *overrides)
    check_ranges(config, ranges)
    for key, value in list(values_of(config)):
        interval = range_of(key, ranges)
        if is_number(value):
            assert interval is not None, key
        if interval is None or isinstance(value, list):
            continue
        for probe in PROBES:
            check = refusal(replaced(config, key, probe), ranges)
            if admits(interval.text, probe):
                assert check is None, (key, probe, check)
            else:
                assert check is not None and check.startswith(f"{key}: expected "), (key, probe)
                assert interval.text[interval.text.find("[") : -1] in check and "\n" not in check


EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix("")) for path in CONF.glob("experiment/**/*.yaml")
)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_within_the_ranges_of_its_files(experiment):
    override = f"experiment={experiment}"
    check_ranges(OmegaConf.to_container(composed(override), resolve=True), composed_ranges("train", override))


def refusal(config: dict, ranges: dict[str, KeyRanges]) -> str | None:
    try:
        check_ranges(config, ranges)
    except ValueError as error:
        return str(error)
    return None


def replaced(config: dict, key: str, value: Any) -> dict:
    """Replace one value of nested containers, in the part that has it alone, so that the part is all there is."""
    path = path_of(config, key)
    alone: Any = value
    node = config
    containers = [config]
    for name in path[:-1]:
        node = node[name]
        containers.append(node)
    for container, name in zip(reversed(containers), reversed(path), strict=True):
        if isinstance(container, list):
            changed = deepcopy(container)
            changed[name] = alone
            alone = changed
        else:
            alone = {name: alone}
    return alone


def path_of(node: Any, key: str) -> list:
    """Return the names that a dotted key is made of; names may have dots of their own."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == str(name):
            return [name]
        if key.startswith(f"{name}.") and isinstance(value, (dict, list)):
            try:
                return [name, *path_of(value, key[len(str(name)) + 1 :])]
            except KeyError:
                continue
    raise KeyError(key)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1]", [0, 1, 0.5, 1.0], [-1e-9, 1.01, math.nan, math.inf, None, "0.5", True]),
        ("[0, 1)", [0, 0.999], [1, 1.0]),
        ("(0, 1]", [1e-30, 1], [0, 0.0, -0.0]),
        ("(0, inf)", [1e-9, 3e38], [0, math.inf, 4e38, 1e308]),
        ("(-inf, inf)", [-5, 0.0], [-math.inf, math.inf, math.nan]),
        ("int [1, inf)", [1, 2**40], [0, 1.0, 1.5, math.inf, 2**64, 10**400, True]),
        ("int [0, 2^32)", [0, 2**32 - 1], [2**32, -1]),
        ("null or (0, inf)", [None, 1], [0, "null", False]),
        ("null or int [1, 4096]", [None, 4096], [4097, 0.5]),
        ("2 of [-1e6, 1e-3]", [-1e6, 1e-3], [0.1]),
    ],
)
def test_an_interval_holds_what_it_says(text, inside, outside):
    interval = parse_interval(text)
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)


@pytest.mark.parametrize("text", ["[0, 1", "0, 1", "[1, 0]", "int", "[a, b]", "{0, 1}", ""])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(ValueError):
        parse_interval(text)


def test_a_comment_states_ranges_by_name_and_whether_keys_may_be_added():
    found = parse_comment("nu (0, inf), samples null or int [1, 8], open: words, [0, 1] among them")
    assert {name: interval.text for name, interval in found.by_name.items()} == {
        "nu": "(0, inf)",
        "samples": "null or int [1, 8]",
    }
    assert found.is_open
    assert set(parse_comment("int [1, inf): weeks").by_name) == {""}
    assert set(parse_comment("each [0, 1]").by_name) == {"each"}
    assert parse_comment("open").is_open
    for words in ("weeks of a season", "openly said", "share in [0, 1]", "[0, 1] or more", ""):
        assert parse_comment(words) == KeyRanges(), words


def test_a_range_holds_for_what_is_below_and_the_nearest_one_counts(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "both:  # low [0, 1], each int [1, inf)\n"
        "  name: x\n"
        "  low: 0.5\n"
        "  other: {low: 1, high: 3}  # high [3, 4]\n"
        "  list: [1, 2]\n"
        "bare: 3\n"
        "more:  # each [0, 9], open\n"
        "  one: 1\n"
    )
    ranges = read_file(tmp_path / "a.yaml")
    texts = {key: interval and interval.text for key, interval in ((k, range_of(k, ranges)) for k in KEYS)}
    assert texts == KEYS


KEYS = {
    "both.low": "[0, 1]",
    "both.other.low": "[0, 1]",
    "both.other.high": "[3, 4]",
    "both.list.0": "int [1, inf)",
    "both.added": None,
    "bare": None,
    "more.one": "[0, 9]",
    "more.added": "[0, 9]",
}


@pytest.mark.slow
def test_the_chosen_option_of_a_group_decides():
    gae = composed_ranges("train", "algo=ppo_kl", "env=email", "algo/advantage=gae")
    rloo = composed_ranges("train", "algo=ppo_kl", "env=email", "algo/advantage=rloo")
    assert range_of("algo.advantage.gamma", gae) and range_of("algo.advantage.gamma", rloo) is None
    check_ranges({"algo": {"advantage": {"samples_per_prompt": 1}}}, gae)
    with pytest.raises(ValueError, match="algo.advantage.samples_per_prompt: expected a whole number in"):
        check_ranges({"algo": {"advantage": {"samples_per_prompt": 1}}}, rloo)


def test_a_checkpoints_number_must_suit_one_option():
    check_stored_ranges(OmegaConf.create({"env": {"num_agents": 1}}), CONF, "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt: env.num_agents: expected a whole number in .* got 0"):
        check_stored_ranges(OmegaConf.create({"env": {"num_agents": 0}}), CONF, "checkpoint.pt")


@pytest.mark.slow
def test_numbers_that_no_run_can_mean_are_refused():
    config = OmegaConf.to_container(composed("algo=ppo", "env=offers"), resolve=True)
    ranges = composed_ranges("train", "algo=ppo", "env=offers")
    for key, values in FAULTY_NUMBERS.items():
        sweep = OverridesParser.create().parse_override(f"{key}={values},0")  # one value alone would be no sweep
        for value in list(sweep.sweep_iterator())[:-1]:
            said = refusal(replaced(config, key, value), ranges)
            assert said is not None and said.startswith(key), (key, value)

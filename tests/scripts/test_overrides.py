"""What the scripts say of an override that fits no key, no choice of a group, or no range: one line, exit code 2."""

from __future__ import annotations

import pytest

from faulty_numbers import FAULTY_NUMBERS
from script_runner import run


def error_of(done) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algo.lr=1e-3", "algo.lr: no such key; did you mean algo.optimizer.lr?"),
        ("+algo.lr=1e-3", "algo.lr: no such key; did you mean algo.optimizer.lr?"),
        ("+algo.optimizer.momentum=0.9", "algo.optimizer.momentum: no such key"),
        ("+algo.clip=0.1", "algo.clip: stands in the configuration; expected algo.clip=VALUE, without a plus"),
        ("log=a=b.parquet", """log=a=b.parquet: quote values that hold = , # ( ) [ ] { }: 'log="a=b.parquet"'"""),
        ("log=a,b.parquet", "log=a,b.parquet: several values: -m runs each of them"),
        ("env/world=ful", "env/world=ful: no such choice; expected fatigue_only, full, "),
        (
            "+env.catalogue.offers.euro_9={value: -1}",
            "env.catalogue.offers.euro_9.value: expected a number in [0, 1e6]",
        ),
    ],
)
def test_an_unknown_key_or_an_unreadable_value_is_one_line(tmp_path, override, says):
    assert error_of(run(tmp_path, "train", override)).startswith(says)


@pytest.mark.slow
@pytest.mark.parametrize("key", list(FAULTY_NUMBERS)[::2])
def test_numbers_that_no_run_can_mean_are_one_line_by_the_script(tmp_path, key):
    values = FAULTY_NUMBERS[key]
    first = values[: values.index("]") + 1] if values.startswith("[") else values.partition(",")[0]
    said = error_of(run(tmp_path, "train", f"{key}={first}"))
    assert said.startswith(key) and ": expected " in said

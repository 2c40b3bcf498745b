"""The bounds that a plan must keep to be handed over: of all messages, of an arm's, and of the expected spend."""

from __future__ import annotations

import pytest

pytest.importorskip("pyarrow")  # extra `live`
import pyarrow as pa
import pyarrow.parquet as pq

from envs.live.plan.output.bounds import main

ROWS = [("holdout", "", 0.0), ("bau", "coffee", 0.25), ("bau", "coffee", 0.5), ("bau", "", 0.0), ("rl", "coffee", 2.0)]


@pytest.fixture
def plan(tmp_path):
    """Return what writes rows of arm, offer and spend as a plan, and names its file."""

    def write(rows=ROWS):
        arm, offer, spend = zip(*rows)
        types = pa.array(spend, pa.float32())
        path = tmp_path / "week=48.parquet"
        pq.write_table(pa.table({"arm": pa.array(arm), "offer": pa.array(offer), "spend": types}), path)
        return str(path)

    return write


def test_what_a_plan_sends_is_said_by_arm(plan, capsys):
    assert main([plan()]) == 0
    assert main([plan([*ROWS, ("random", "", 0.0), ("holdout", "coffee", 1.0)])]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 messages (bau 2, rl 1), expected spend 2.75",
        "4 messages (holdout 1, random 0, bau 2, rl 1), expected spend 3.75",
    ]


@pytest.mark.parametrize("bound", ["messages=3-3", "messages=-3", "spend=2.75-2.75", "rl=1-", "bau=2-2", "random=0-0"])
def test_the_ends_of_a_bound_are_within_it(plan, bound):
    assert main([plan(), bound]) == 0


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ("messages=4-", "3 messages, out of the bounds 4 to any"),
        ("messages=-2", "3 messages, out of the bounds 0 to 2"),
        ("spend=2.76-5", "expected spend 2.75, out of the bounds 2.76 to 5"),
        ("spend=-2.74", "expected spend 2.75, out of the bounds 0 to 2.74"),
        ("rl=2-4", "1 messages of the arm rl, out of the bounds 2 to 4"),
        ("random=1-", "0 messages of the arm random, out of the bounds 1 to any"),  # without a customer
        ("holdout=1-", "0 messages of the arm holdout, out of the bounds 1 to any"),
    ],
)
def test_a_plan_out_of_bounds_is_named_by_what_is_wrong(plan, capsys, bound, said):
    path = plan()
    assert main([path, "messages=1-", bound, "bau=1-"]) == 4
    assert capsys.readouterr().err == f"{path}: {said}: not handed over\n"


@pytest.mark.parametrize(
    "bound", ["rl", "rl=5", "rl=-", "rl=1,000-", "spend=-1-5", "spend=1e3-", "ours=1-2", "", "rl=1 -2"]
)
def test_a_bound_that_can_t_be_read_is_refused(plan, capsys, bound):
    assert main([plan(), bound]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: bounds: expected NAME=LEAST-MOST") and said.err.endswith(f"got '{bound}'\n")
    assert not said.out


@pytest.mark.parametrize("spend", [float("nan"), float("inf"), None])
def test_a_spend_that_is_no_number_is_within_no_bound(plan, capsys, spend):
    assert main([plan([*ROWS, ("rl", "coffee", spend)])]) == 2
    assert "row 5, column 'spend': expected a number, got" in capsys.readouterr().err


def test_what_is_no_plan_is_refused(tmp_path, capsys):
    (tmp_path / "damaged").write_text("PAR1")
    pq.write_table(pa.table({"arm": ["rl"]}), tmp_path / "other")
    for name in ("damaged", "other", "missing"):
        assert main([str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path / name}: expected a plan that scripts/plan.py wrote\n"


def test_a_bound_whose_least_is_above_its_most_is_bad_input(plan, capsys):
    assert main([plan(), "rl=130-30"]) == 2
    assert capsys.readouterr().err == "error: bounds: expected the least first, got 'rl=130-30'\n"

"""The plan of an exported policy, asked from Python."""

from __future__ import annotations

import csv

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from small_package import TODAY, config_of, export_small, rows, untrained, write_table


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a table, and the package of a policy on it."""
    folder = tmp_path_factory.mktemp("package")
    config = config_of(folder)
    env, agent = untrained(config)
    return folder, export_small(folder, config, env, agent)


def test_rows_far_from_training_are_refused_by_row_and_column(exported):
    folder, package = exported
    table = rows(20)
    table[4]["spend"] = 1e6
    path = write_table(folder / "far.csv", table)
    with pytest.raises(ValueError, match=r"far\.csv: row 6, column 'spend': expected"):
        package.plan(str(path), week=2, money=8.0, today=TODAY)


def test_the_files_hold_the_plan_and_a_key_that_is_none_is_one_line(exported, tmp_path):
    folder, package = exported
    made = package.plan(
        str(folder / "customers.csv"), week=14, money=8.0, today=TODAY, out=str(tmp_path / "week=14.parquet")
    )
    paths = made.write()
    with paths[1].open() as file:
        sent = list(csv.DictReader(file))
    assert {x["customer"] for x in sent} == {made.customers.ids[k] for k in made.plan.sent.tolist()}
    assert set(made.table()["week"].to_pylist()) == {14 % package.weeks}
    for keys in ({"moneey": 3}, {"money": -1.0}, {"sigma": 9.0}, {"arms": {"bau": 2.0}}):
        with pytest.raises(ValueError, match=next(iter(keys))):
            package.plan(str(folder / "customers.csv"), week=2, today=TODAY, **keys)

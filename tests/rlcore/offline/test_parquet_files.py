"""A damaged Parquet file is refused by its name, and never read as other numbers."""

from __future__ import annotations

import pytest

from rlcore.offline.parquet_files import parquet_writer, read_parquet

pa = pytest.importorskip("pyarrow")


def test_a_flipped_byte_changes_no_number_unseen(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [k * 0.37 for k in range(5000)], "b": [f"c{k % 7}" for k in range(5000)]})
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
    assert read_parquet(path).equals(table)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    refused = 0
    places = range(4, len(whole) - footer, 211)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert read_parquet(path).equals(table)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: can't be read: ") and "\n" not in str(error)
    assert refused > 0.9 * len(places)


def test_columns_and_rows_are_chosen_and_what_is_missing_is_said(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", "x"]})
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
    assert read_parquet(path, ["a"], [("b", "=", "x")]).to_pydict() == {"a": [1, 3]}
    (tmp_path / "text.parquet").write_text("hello")
    for name in ("nowhere.parquet", "text.parquet"):
        with pytest.raises(ValueError, match=f"{name}: can't be read"):
            read_parquet(tmp_path / name)

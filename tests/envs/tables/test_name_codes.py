"""Names in a column as whole numbers, and the refusal of a name that nobody knows."""

from __future__ import annotations

import numpy as np
import pytest

from envs.tables.name_codes import name_codes, numbered


def place(row: int) -> str:
    return f"file.csv: row {row + 2}"


def test_each_text_gets_the_code_of_its_name():
    assert numbered("ab", 1) == {"a": 1, "b": 2}
    codes = {"": -1, **numbered(("tea", "cake"))}
    found = name_codes(["cake", "", "tea", "cake"], codes, place)
    assert found.tolist() == [1, -1, 0, 1] and found.dtype == np.int64
    assert name_codes([], codes, place).tolist() == []


def test_the_first_text_without_a_code_is_refused_with_its_place_and_the_names_there_are():
    with pytest.raises(ValueError, match=r"^file.csv: row 3: expected one of tea, cake, got 'wine'$"):
        name_codes(["tea", "wine", "beer"], {"": 0, **numbered(("tea", "cake"))}, place)
    with pytest.raises(ValueError, match=r"expected one of 0, 1, 2, 3, 4, 5, 6, 7, …, got ''$"):
        name_codes([""], numbered("0123456789"), place)

"""docs/extend.md runs as it stands, and its algorithms learn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"


@pytest.mark.long
def test_the_page_on_extending_runs_and_learns(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    for line in printed[:2]:  # at chance 1 in 25 steps ends the walk, at best 1 in 5
        first, last = (float(x) for x in re.findall(r"\d\.\d\d", line))
        assert first < 0.1 and last > 0.17, line
    contacts = float(re.search(r"contacts: ([\d.]+)%", printed[2]).group(1))
    assert 5 < contacts < 20  # of those who may be contacted, one in five

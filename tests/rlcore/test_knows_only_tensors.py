"""rlcore knows tensors: its files, docstrings and messages included, have no word of marketing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RLCORE = Path(__file__).parents[2] / "rlcore"
MARKETING = re.compile(r"\b\w*(customer|redeem|redemption|channel|churn)\w*|\b(trip|offer)s?\b", re.IGNORECASE)


@pytest.mark.parametrize("path", sorted(RLCORE.rglob("*.py")), ids=lambda path: str(path.relative_to(RLCORE)))
def test_no_word_of_marketing_stands_in_rlcore(path):
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert not [f"line {number}: {line.strip()}" for number, line in lines if MARKETING.search(line.replace("_", " "))]

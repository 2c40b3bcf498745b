"""A place for a ledger, once in each store."""

from __future__ import annotations

import pytest

from ledger_stores import places


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    yield from places(request.param, tmp_path)

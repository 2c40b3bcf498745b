"""A shop's mailing in the layout of Hillstrom's, with a known effect."""

from __future__ import annotations

import pytest
import torch

from scripts.benchmarks.uplift.hillstrom import ARMS


def made_up_mailing(n: int = 6000):
    """Draw n customers: men's mail pays for customers of men's goods, women's for others of odd recency."""
    pandas = pytest.importorskip("pandas")
    generator = torch.Generator().manual_seed(0)
    mens, recency, arm = (torch.randint(k, (n,), generator=generator) for k in (2, 12, 3))
    good = torch.where(mens == 1, arm == 1, arm == 2)
    visit = torch.rand(n, generator=generator) < torch.where(good, 0.5, 0.1)
    spend = torch.where(visit, 10.0, 0.0)
    segments = list(ARMS)
    return pandas.DataFrame(
        {
            "recency": recency,
            "history": 100.0,
            "mens": mens,
            "womens": 1 - mens,
            "newbie": 0,
            "zip_code": "Rural",
            "channel": "Web",
            "segment": [segments[k] for k in arm.tolist()],
            "visit": visit.int().numpy(),
            "conversion": visit.int().numpy(),
            "spend": spend.numpy(),
        }
    )

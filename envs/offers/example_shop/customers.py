"""The made-up shop's customers: rows of its export, and the parameters θ behind them, which no shop sees."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from omegaconf import OmegaConf

from envs.configuration import CONF
from envs.offers.populations.base import Priors
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import Customers

FIRST_NUMBER = 100_000
RATE_RANGE = (0.01, 0.99)
NUMBERS = ("Weekly Rate", "Basket", "Gross Margin", "Age", "Visits", "Complaints")
# what the columns leave open of α and of the margin: standard deviation, of the logarithm for the margin
ALPHA_SD, MARGIN_SD = 0.3, 0.1
TASTE = {"gold": -0.35, "silver": 0.0, "basic": 0.35}  # of the logarithm of β, by tier


def customer_rows(first: int, n: int, seed: int, *, younger: bool) -> list[dict[str, str]]:
    """Draw rows of n customers with the columns of this shop's export, numbered from `first`; some ages are missing.

    A shop's newer customers are `younger` than the others, and more of them have its app.
    """
    rng = random.Random(seed)
    rows = []
    for k in range(first, first + n):
        tier = rng.choices(("gold", "silver", "basic"), (1, 3, 6))[0]
        rate = rng.betavariate(*{"gold": (6, 3), "silver": (4, 5), "basic": (2, 7)}[tier])
        rows.append(
            {
                "Customer No": f"K{FIRST_NUMBER + k}",
                "Weekly Rate": f"{rate:.4f}",
                "Basket": f"{rng.lognormvariate(3.6, 0.5):.2f}",
                "Gross Margin": f"{rng.uniform(0.2, 0.4):.3f}",
                "Age": "" if rng.random() < 0.04 else str(rng.randint(16, 44 if younger else 88)),
                "Tier": tier,
                "Postcode": f"{rng.randrange(1000, 99999):05d}",
                "Region": rng.choices(("north", "south", "east", "islands"), (50, 30, 19, 1))[0],
                "Visits": str(round(52 * rate * rng.uniform(1.0, 1.6))),
                "Complaints": str(min(rng.getrandbits(2), 2)),
                "App Installed": rng.choice(("yes", "yes", "yes", "no") if younger else ("yes", "no")),
                "Newsletter": rng.choices(("yes", "no"), (7, 3))[0],
            }
        )
    return rows


def as_columns(rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """Return rows as columns [N], numbers as float64 with NaN where there is none."""
    return {
        name: np.array([float(row[name] or "nan") if name in NUMBERS else row[name] for row in rows])
        for name in rows[0]
    }


def true_parameters(rows: list[dict[str, str]], catalogue: Catalogue, generator: torch.Generator) -> Customers:
    """Draw each customer's θ from the priors of conf/, moved by what the columns say of the customer; [N] each.

    Customers of the lower tiers like a discount more, the young see the app and the old see letters, the north reads
    messages without value too, and who complained tires sooner and opts out more.
    """
    columns = {name: torch.tensor(x) for name, x in as_columns(rows).items() if name in NUMBERS}
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "env/population/priors/default.yaml"))
    assert isinstance(settings, dict)
    neutral = {"rate": [0.5, 0.5], "spend": [1.0, MARGIN_SD], "margin_rate": [1.0, 1.0]}
    c = Priors(catalogue, **{**settings, **neutral}).draw(len(rows), generator)
    rate = columns["Weekly Rate"].clamp(*RATE_RANGE)
    open_alpha = ALPHA_SD * torch.randn(len(rows), generator=generator, dtype=torch.float64)
    taste = torch.tensor([TASTE[row["Tier"]] for row in rows], dtype=torch.float64)
    is_north = torch.tensor([row["Region"] == "north" for row in rows]).double()
    years = ((columns["Age"].nan_to_num(50.0) - 50.0) / 20.0).clamp(-1.5, 1.5)
    liking = {"app": -0.5, "letter": 0.5}  # of attention, logit, by years
    omega = torch.stack([x + liking.get(name, 0.0) * years for name, x in zip(catalogue.channels, c.omega)])
    return replace(
        c,
        alpha=c.alpha + torch.logit(rate) + open_alpha,
        margin=c.margin * columns["Basket"] * columns["Gross Margin"],
        beta=c.beta * taste.exp(),
        eta=c.eta + 0.15 * is_north,
        phi=c.phi + 0.15 * columns["Complaints"],
        opt_out=c.opt_out * (1 + 0.5 * columns["Complaints"]),
        omega=omega,
    )

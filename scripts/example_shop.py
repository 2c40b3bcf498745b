"""Write a made-up shop: python scripts/example_shop.py FOLDER; then scripts/train.py -cd FOLDER experiment=shop."""
from __future__ import annotations

import random
import sys
from pathlib import Path

CONFIG = {
    "env/population/shop.yaml": """\
defaults:
  - table
  - _self_
path: {folder}/customers.csv
separator: ";"
id: Customer No
rate: Weekly Rate
spend: Basket
margin: Gross Margin
text: [Postcode]
ignore: [Postcode, Age]  # too many, and none of a discount's business; rules may read them all the same
""",
    "env/catalogue/shop.yaml": """\
_target_: envs.offers.catalogue.Catalogue.build
offers:
  coffee: {{value: 1.5}}
  five_off: {{value: 5.0}}
  wine_tasting: {{value: 4.0}}
channels:
  app: {{cost: 0.00, attention: 0.20, opt_out: 0.004, tires: 1}}
  newsletter: {{cost: 0.01, attention: 0.25, opt_out: 0.003, tires: 1}}
  letter: {{cost: 0.90, attention: 0.60, opt_out: 0.001, tires: 1}}
""",
    "env/rules/shop.yaml": """\
defaults:
  - none
  - _self_
eligible:
  five_off: Tier in ['gold', 'silver'] and Basket >= 20
age:
  column: Age
  limits: {{wine_tasting: [18, null]}}
consent:
  app: "`App Installed` == 'yes'"
  newsletter: "`Newsletter` == 'yes'"
caps:
  - {{weeks: 4, contacts: 2}}
holdout: {{share: 0.05}}
""",
    "experiment/shop.yaml": """\
# @package _global_
defaults:
  - override /env/population: shop
  - override /env/catalogue: shop
  - override /env/rules: shop
""",
}


def customers(n: int, seed: int) -> list[dict]:
    """Draw rows with the columns of this shop's export; some ages are not known."""
    rng = random.Random(seed)
    rows = []
    for k in range(n):
        tier = rng.choices(("gold", "silver", "basic"), (1, 3, 6))[0]
        rate = rng.betavariate(*{"gold": (6, 3), "silver": (4, 5), "basic": (2, 7)}[tier])
        rows.append({
            "Customer No": f"K{100000 + k}", "Weekly Rate": f"{rate:.4f}", "Basket": f"{rng.lognormvariate(3.6, 0.5):.2f}",
            "Gross Margin": f"{rng.uniform(0.2, 0.4):.3f}", "Age": "" if rng.random() < 0.04 else str(rng.randint(16, 88)),
            "Tier": tier, "Postcode": f"{rng.randrange(1000, 99999):05d}",
            "Region": rng.choices(("north", "south", "east", "islands"), (50, 30, 19, 1))[0],
            "Visits": str(round(52 * rate * rng.uniform(1.0, 1.6))), "Complaints": str(min(rng.getrandbits(2), 2)),
            "App Installed": rng.choice(("yes", "no")), "Newsletter": rng.choices(("yes", "no"), (7, 3))[0]})
    return rows


def write(folder: Path, n: int, seed: int) -> None:
    """Write customers.csv, with semicolons and Windows line ends, and the configuration beside it."""
    rows = customers(n, seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [";".join(rows[0]), *(";".join(row.values()) for row in rows)]
    (folder / "customers.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8-sig"))
    for name, text in CONFIG.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format(folder=folder))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/example_shop.py FOLDER")
    write(Path(sys.argv[1]), 10_000, 0)
    print(f"{sys.argv[1]}/: customers.csv and {', '.join(CONFIG)}")

"""The configuration of the made-up shop, as files of a folder that -cd names."""

from __future__ import annotations

import datetime

FIRST_MONDAY = datetime.date(2026, 1, 5)
SENDING_SHARE = 0.5  # of the weeks in which a customer may be contacted and the shop sends at all
GAP_SHARE = 1 / 12  # of weeks in which the shop sends nothing to anybody

CONFIG = {
    "env/population/shop.yaml": """\
defaults:
  - customer_table
  - _self_
path: {folder}/customers.csv
separator: ";"
id: Customer No
rate: Weekly Rate
spend: Basket
margin: Gross Margin
text: [Postcode]
# a postcode has too many values, an age is none of a discount's business, and dates of coming and going say when a
# customer was there; rules and the import may read them all the same
ignore: [Postcode, Age, Joined, Left]
""",
    "env/catalogue/shop.yaml": """\
_target_: envs.offers.world.catalogue.Catalogue.build
offers:
  coffee: {{value: 1.5}}
  five_off: {{value: 5.0}}
  wine_tasting: {{value: 4.0}}
channels:
  app: {{cost: 0.00, attention: 0.20, opt_out: 0.004, fatigue_steps: 1}}
  newsletter: {{cost: 0.01, attention: 0.25, opt_out: 0.003, fatigue_steps: 1}}
  letter: {{cost: 0.90, attention: 0.60, opt_out: 0.001, fatigue_steps: 1}}
""",
    "env/contact_rules/shop.yaml": """\
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
holdout: {{share: 0.05, salt: 7}}
""",
    "experiment/shop.yaml": """\
# @package _global_
defaults:
  - override /env/population: shop
  - override /env/catalogue: shop
  - override /env/contact_rules: shop
""",
    "sends/shop.yaml": """\
defaults:
  - default
  - _self_
path: {folder}/sends.csv
separator: ";"
customer: Customer No
propensity_of_nothing: {propensity_of_nothing:.6f}  # no send in that week to anybody, or not to this customer
purchases:
  path: {folder}/purchases.csv
  separator: ";"
  customer: Customer No
joined: Joined
left: Left
start: {first_monday}
""",
    "experiment/shop_test.yaml": """\
# @package _global_
# the randomised mailing: scripts/uplift.py -cd {folder} experiment=shop_test
data: {folder}/test.csv
table:
  id: customer
  treatment: arm
  control: none
  outcomes: [bought, margin, discount]
ab_test:
  worth: {{margin: 1.0, discount: -1.0}}
  cost: 0.9  # of a letter, as in the catalogue
""",
    "experiment/shop_mails.yaml": """\
# @package _global_
# the reward model of the shop's e-mails: scripts/train.py -cd {folder} experiment=shop_mails
defaults:
  - override /algo: reward_model
  - override /env: email
env:
  data: {folder}/mails.csv
algo:
  encoder: {{steps: 300}}
""",
}


def propensity_of_nothing() -> float:
    """Probability that a customer who may be contacted gets nothing in a week: a gap, or the other half."""
    return 1 - (1 - GAP_SHARE) * SENDING_SHARE


def config_files(folder: str) -> dict[str, str]:
    """Return the files of the configuration {name: text} of a shop whose data lie in `folder`."""
    return {
        name: text.format(
            folder=folder, propensity_of_nothing=propensity_of_nothing(), first_monday=f'"{FIRST_MONDAY}"'
        )
        for name, text in CONFIG.items()
    }

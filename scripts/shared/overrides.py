"""What a command line overrides: refused in one line where it is of another kind, out of range, or no key at all."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from typing import Any

from hydra import compose
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from envs.configuration import CONF, OWN_PACKAGES
from envs.range_checks import check_ranges, plain
from envs.signatures import check_signatures
from envs.value_ranges import ConfigPart, KeyRanges, is_open, ranges_of

SIMILAR = 0.6  # from which likeness of their last words on a key is suggested for another


def overrides_first(arguments: list[str]) -> list[str]:
    """Move options, such as -cd FOLDER, behind the overrides, because Hydra reads no override after an option.

    Raises ValueError where there is no such option.
    """
    parsed, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        raise ValueError(f"{unknown[0]}: no such option; --help lists them")
    options = [argument for argument in arguments if argument not in parsed.overrides]
    return [*parsed.overrides, *options]


def key_of(override: str) -> str:
    """Return what an override of the command line names."""
    return override.partition("=")[0].lstrip("+~")


def check_nothing_is_trained() -> None:
    """Raise ValueError where the command line names what is trained; an experiment may, and it goes unread."""
    for override in HydraConfig.get().overrides.task:
        if re.split(r"[./@]", key_of(override))[0] == "algo":
            raise ValueError(f"{override}: nothing is trained here, expected no choice and no key of algo")


def check_one_log_a_job(cfg: DictConfig) -> None:
    """Raise ValueError where the jobs of a sweep, as an experiment may be, would write the same file `out`."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and not OmegaConf.is_interpolation(cfg, "out"):
        raise ValueError(
            f"out={cfg.out}: each job of a sweep would write it: expected a file a job, as in "
            "'out=log_${hydra:job.num}.parquet', or one job, by hydra.mode=RUN"
        )


def check_one_job() -> None:
    """Raise ValueError in a sweep, as an experiment may be: its jobs would all print the same."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError("hydra.mode=MULTIRUN: each job of a sweep would print the same: expected hydra.mode=RUN")


def check_config(cfg: DictConfig) -> None:
    """Check a composed configuration by its overrides and by the ranges of the files that it is composed of.

    Raises ValueError, in one line that names the key.
    """
    hydra = HydraConfig.get()
    ranges = ranges_of(config_parts(hydra.job.config_name, [*hydra.overrides.hydra, *hydra.overrides.task]))
    check_added_to_hydra(hydra)
    check_overrides(cfg, ranges)
    check_ranges(cfg, ranges)
    check_signatures({key: part for key, part in plain(cfg).items() if not is_of_checkpoint(f"{key}.", cfg)})


def config_parts(config_name: str | None, overrides: list[str]) -> list[ConfigPart]:
    """Return the files of conf/ that Hydra, once initialized, composes, in the order in which later ones override."""
    loader: ConfigLoader = GlobalHydra.instance().config_loader()
    composed = loader.compute_defaults_list(config_name, overrides, RunMode.RUN).defaults
    parts = [(part.config_path, (part.package or "").removeprefix("_global_").lstrip(".")) for part in composed]
    files = [ConfigPart(CONF / f"{path}.yaml", package) for path, package in parts if path is not None]
    return [part for part in files if part.path.is_file()]  # not Hydra's own, nor a user's


def check_overrides(cfg: DictConfig, ranges: dict[str, KeyRanges]) -> None:
    """Refuse overrides of another kind than what they replace, such as a word for a number, and of unknown keys.

    null is of every kind. A key that is added with a plus is unknown unless its mapping is open.
    """
    hydra = HydraConfig.get()
    groups = {group.partition("@")[0] for group in hydra.runtime.choices}
    chosen = [override for override in hydra.overrides.task if key_of(override).partition("@")[0] in groups]
    single = [override for override in hydra.overrides.task if override not in chosen]
    if not single:
        return
    shipped = compose(hydra.job.config_name, overrides=[*hydra.overrides.hydra, *chosen])
    known = set(keys_of(shipped))
    for override in single:
        key = key_of(override)
        if key in known:
            before, now = OmegaConf.select(shipped, key), OmegaConf.select(cfg, key)
            if now is not None and kind(before) not in (None, kind(now)):
                raise ValueError(f"{key}: expected {kind(before)}, as in {key}={before}, got '{now}'")
        elif not is_of_checkpoint(key, cfg) and not is_open(key, ranges) and not is_parameter(key, shipped):
            raise ValueError(no_such_key(key, shipped))


def check_added_to_hydra(hydra: HydraConf) -> None:
    """Refuse keys that an override adds with a plus to a mapping of Hydra's own that has a fixed set of keys."""
    config = OmegaConf.create({"hydra": hydra})
    for override in hydra.overrides.hydra:
        parent, _, name = key_of(override).rpartition(".")
        kind_of_parent = OmegaConf.get_type(OmegaConf.select(config, parent)) if override.startswith("+") else None
        if is_dataclass(kind_of_parent) and name not in {field.name for field in fields(kind_of_parent)}:
            raise ValueError(no_such_key(key_of(override), config))


def kind(value: Any) -> str | None:
    """Say of what kind a value of a configuration is, where that matters."""
    kinds = ((bool, "true or false"), ((int, float), "a number"), (ListConfig, "a list"), (DictConfig, "keys"))
    return next((name for types, name in kinds if isinstance(value, types)), None)


def is_of_checkpoint(key: str, cfg: DictConfig) -> bool:
    """Tell whether a key belongs to the environment that a checkpoint brings, which is not composed here."""
    return bool(cfg.get("checkpoint")) and key.startswith("env.")


def is_parameter(key: str, shipped: DictConfig) -> bool:
    """Tell whether a key is a parameter of a class that is not ours, such as a momentum of torch.optim.SGD.

    The keys of our own classes all stand in conf/.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(shipped, parent) if parent else None
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None or target.partition(".")[0] in OWN_PACKAGES:
        return False
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return True  # what takes it will say
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def keys_of(config: DictConfig) -> list[str]:
    """Return the paths of all keys of a configuration, of its mappings too."""

    def below(node: Any, prefix: str) -> Iterator[str]:
        for name, value in node.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from below(value, f"{prefix}{name}.")

    return list(below(OmegaConf.to_container(config), ""))


def no_such_key(key: str, config: DictConfig) -> str:
    """Say that a key does not exist, and which one is like it; under `algo` no key of `env` is, nor the reverse."""
    group = key.partition(".")[0] + "."
    others = [other for other in keys_of(config) if other != key]
    found = most_alike(key, [other for other in others if other.startswith(group)] or others)
    return f"{key}: no such key" + (f"; did you mean {found}?" if found else "")


def most_alike(key: str, known: Iterable[str]) -> str | None:
    """Return the key whose last word is most like that of another, and among these the most alike as a whole."""

    def likeness(other: str) -> tuple[float, float]:
        words = SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2])
        return words.ratio(), SequenceMatcher(None, key, other).ratio()

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= SIMILAR else None

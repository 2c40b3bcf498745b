"""The jobs of a sweep, as they lie on disk: what each was told, its headline figure and its learning curve."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

SEED = "seed"  # the last word of keys whose values are replications of one setting


class Job(NamedTuple):
    """A run that has ended."""

    folder: Path
    overrides: dict[str, str]  #: what its command line chose, {key: value}
    seed: str  #: empty where the command line does not say
    training_seed: str  #: the key `seed` alone; empty where the command line does not say
    metric: str  #: name of the headline figure
    value: float
    higher_is_better: bool
    curve_metric: str
    curve: list[tuple[int, float]]  #: (step, value) of the validations during training
    beside: dict[str, float]  #: the metric's value of other policies, {name: value}; NaN where a run has no such policy


class Setting(NamedTuple):
    """The jobs that differ in their seed alone."""

    choices: dict[str, str]  #: {key: value} of the keys in which the jobs of a sweep differ; empty: not chosen
    metric: str
    jobs: list[Job]

    @property
    def label(self) -> str:
        """Name the setting in a figure."""
        return ", ".join(f"{key}={value}" for key, value in self.choices.items() if value) or "all"


def read_jobs(folders: Iterable[Path], beside: Iterable[str] = ()) -> list[Job]:
    """Read the runs in folders and below them, in the order of their names; a run that lies in two of them counts once.

    `beside` names the other policies that are read. Raises ValueError where a folder has no run, where a run's
    metrics.json has no headline figure, and where no run has a policy of such a name.
    """
    found: dict[Path, Path] = {}  # by the file's own path, whatever links and folders lead to it
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        files = sorted(folder.rglob("metrics.json"), key=lambda file: natural_order(file.relative_to(folder)))
        if not files:
            raise ValueError(f"{folder}: expected the folder of a sweep or of a run: no metrics.json in it or below")
        for file in files:
            found.setdefault(file.resolve(), file)
    jobs = [read_job(file, beside) for file in found.values()]
    for name in beside:
        if all(math.isnan(job.beside[name]) for job in jobs):
            raise ValueError(f"beside: expected the name of a policy in one of the runs' tables, got '{name}'")
    return jobs


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Order names that begin with a number by that number: 2_seed=2 before 10_seed=10."""
    heads = [part.partition("_")[0] for part in path.parts]
    return [(int(head) if head.isdigit() else -1, part) for head, part in zip(heads, path.parts)]


def read_job(file: Path, beside: Iterable[str]) -> Job:
    """Read a run by its metrics.json and by the overrides that Hydra keeps beside it."""
    try:
        found = json.loads(file.read_text())
        headline, curve = found["headline"], found["curve"]
        kept = file.parent / ".hydra" / "overrides.yaml"
        stated = list(OmegaConf.load(kept)) if kept.is_file() else []
        overrides = dict(split_override(str(override)) for override in stated)
        training_seed = overrides.get(SEED, "")
        seeds = [overrides.pop(key) for key in list(overrides) if key.rpartition(".")[2] == SEED]
        return Job(
            folder=file.parent,
            overrides=overrides,
            seed=", ".join(seeds),
            training_seed=training_seed,
            metric=headline["metric"],
            value=number_or_nan(headline["value"]),
            higher_is_better=headline["higher_is_better"],
            curve_metric=curve["metric"],
            curve=[(int(step), number_or_nan(value)) for step, value in curve["points"]],
            beside={
                name: number_or_nan(found.get("policies", {}).get(name, {}).get(headline["metric"])) for name in beside
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: no headline figure of a run in it ({type(error).__name__}: {error})") from error


def number_or_nan(value: float | None) -> float:
    """Read a number of metrics.json, where null stands for what is undefined."""
    return math.nan if value is None else float(value)


def split_override(override: str) -> tuple[str, str]:
    """Split an override into its key and its value."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def group(jobs: list[Job]) -> list[Setting]:
    """Gather the jobs that differ in their seed alone, in the order of their first jobs.

    A setting is named by the keys that not all jobs share.
    """
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    settings: dict[tuple, Setting] = {}
    for job in jobs:
        choices = {key: job.overrides.get(key, "") for key in varied}
        setting = settings.setdefault((job.metric, *choices.values()), Setting(choices, job.metric, []))
        setting.jobs.append(job)
    return list(settings.values())

"""Fixtures that several tests share: the offers world as conf/ has it at any size, and both forms of compiled code."""

from __future__ import annotations

import importlib
import os
import random
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import HealthCheck, settings

from configs import load, node
from fake_cuda_graph import tape  # noqa: F401 (a fixture)
from reference_world import references

torch.set_num_threads(1)  # many small operations: more threads would only wait for each other
# the same examples everywhere, however long they take
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
with suppress(ImportError, AttributeError):  # these are internals, which another version may lack
    providers = importlib.import_module("hypothesis.internal.conjecture.providers")
    # numbers of the modules that are loaded: others after other tests
    providers._get_local_constants, _ = providers.Constants, providers._get_local_constants
SKIPPED_TESTS = os.environ.get("SKIPPED_TESTS")  # file for skipped tests; .ci/run runs these with all extras


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items) -> None:
    """Leave long tests out where the command line selects no test by name, keyword or marker; they are slow too."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
    if config.option.markexpr or config.option.keyword or any("::" in name for name in config.args):
        return
    long_tests = [item for item in items if item.get_closest_marker("long")]
    if long_tests:
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long_tests)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Begin every fixture alike."""
    seed_global_generators()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Begin every test alike, whichever tests ran before it in the same process."""
    seed_global_generators()


def seed_global_generators() -> None:
    """Seed the generators that are drawn from where no other is given."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def pytest_collectreport(report) -> None:
    """Note a file that is skipped as a whole."""
    note_skipped(report)


def pytest_runtest_logreport(report) -> None:
    """Note a test that is skipped."""
    note_skipped(report)


def note_skipped(report) -> None:
    """Add a line to SKIPPED_TESTS: the test, a tab, the reason. Several processes may write the same."""
    if SKIPPED_TESTS and report.skipped and isinstance(report.longrepr, tuple):
        with open(SKIPPED_TESTS, "a") as file:
            file.write(f"{report.nodeid}\t{report.longrepr[2]}\n")


@pytest.fixture
def kernels(monkeypatch):
    """Load a module of Triton's kernels and say where they run: on a GPU, or without one by Triton's interpreter."""
    pytest.importorskip("triton", reason="comes with PyTorch's builds for GPUs")
    loaded = []

    def load(module):
        if torch.cuda.is_available():
            return module, torch.device("cuda")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        loaded.append(module)
        return importlib.reload(module), torch.device("cpu")

    yield load
    monkeypatch.undo()
    for module in loaded:
        importlib.reload(module)


@pytest.fixture(scope="session")
def make_catalogue():
    """Build the shipped catalogue, or the named part of it."""
    whole = node("catalogue/default")

    def make(offers=None, channels=None):
        kept = {
            **whole,
            "offers": {name: whole.offers[name] for name in offers or whole.offers},
            "channels": {name: whole.channels[name] for name in channels or whole.channels},
        }
        return instantiate(kept, _convert_="all")

    return make


@pytest.fixture(scope="session")
def make_season(make_catalogue):
    """Build n customers at the start of a season: world, customers, start, their scalar references."""

    def make(n, *, weeks=12, offers=None, channels=None, disabled_effects=(), reward=None, extreme=False, seed=0):
        catalogue, full = make_catalogue(offers, channels), node("world/full")
        world = load(
            "world/full",
            catalogue,
            load("reward/default", **reward or {}),
            season=full.season[:weeks],
            disabled_effects=list(disabled_effects),
        )
        population = load("population/synthetic", catalogue, reference_size=1000)
        sample = population.draw(n, torch.Generator().manual_seed(seed), "train")
        c = sample.customers
        if extreme:  # so far out that every cap bites
            c = replace(c, c0=30 * c.c0, opt_out=50 * c.opt_out, pi_plus=1.5 * c.pi_plus, rho=3 * c.rho)
        c = world.inhabit(c)
        return SimpleNamespace(world=world, customers=c, start=sample.state, references=references(c, world))

    return make

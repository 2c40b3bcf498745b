"""A file is data: no function that a checkpoint names is run. Every payload would leave a marker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

import script_runner
from configs import CONF
from envs.configuration import instantiate_stored, is_admitted
from scripts.shared.stored_runs import load_teacher
from scripts.shared.warm_start import load_start
from stored import save_state


def touch(marker: Path) -> dict:
    """A configuration that leaves a file where it is instantiated."""
    return {"_target_": "torch.utils.collect_env.run", "command": f"touch {marker}"}


PAYLOADS = {
    "a function of another package": touch,
    "an argument of ours": lambda marker: {"_target_": "envs.offers.env.OffersEnv", "x": touch(marker)},
    "in a list": lambda marker: {"_target_": "builtins.print", "_args_": [touch(marker)]},
    "hidden behind a reference": lambda marker: {
        "name": "torch.utils.collect_env.run",
        "x": {"_target_": "${name}", "command": f"touch {marker}"},
    },
    "through our module": lambda marker: {
        "_target_": "rlcore.runs.checkpoint.Path.write_text",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [str(marker)]}, "x"],
    },
    "a function of ours that writes": lambda marker: {
        "_target_": "rlcore.runs.checkpoint.save_json",
        "path": str(marker),
        "value": 1,
    },
    "by hydra itself": lambda marker: {"_target_": "hydra.utils.instantiate", "config": touch(marker)},
    "a class by name": lambda marker: {"_target_": "hydra.utils.get_class", "path": "subprocess.Popen"},
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_runs_from_a_configuration_of_a_file(tmp_path, payload):
    marker = tmp_path / "marker"
    with pytest.raises(ValueError, match="x.pt: its configuration names .*, which is not run"):
        instantiate_stored(PAYLOADS[payload](marker), "x.pt")
    assert not marker.exists()


def targets_of(config: Any) -> Iterator[str]:
    """Yield every function and class that nested containers name."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["path"] if config["_target_"] == "hydra.utils.get_class" else config["_target_"]
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from targets_of(part)


FILES = sorted(path.relative_to(CONF) for group in ("algo", "env") for path in (CONF / group).rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_all_that_conf_builds_is_admitted(file):
    for target in targets_of(OmegaConf.to_container(OmegaConf.load(CONF / file))):
        try:
            assert is_admitted(target), target
        except ValueError as error:  # of an adapter without its extra
            pytest.skip(str(error))


def test_a_package_of_ones_own_is_admitted_by_name():
    config = {"_target_": "stored.Path", "_args_": ["x"]}
    with pytest.raises(ValueError, match=r"trusted_packages=\[NAME\]"):
        instantiate_stored(config, "x.pt")
    with pytest.raises(ValueError, match="which is not run"):  # the package imports it; it is not the package's own
        instantiate_stored(config, "x.pt", trusted=["stored"])
    built = instantiate_stored({"_target_": "fractions.Fraction", "_args_": [1, 2]}, "x.pt", trusted=["fractions"])
    assert built == 0.5


@pytest.mark.parametrize("escapes", range(4))
def test_a_reference_hides_no_target(tmp_path, escapes):
    """An escaped reference is a text once it is resolved, and Hydra would resolve that text again."""
    marker = tmp_path / "marker"
    path = f"{{_target_: pathlib.Path, _args_: ['{marker}']}}"
    reference = f"${{oc.create:{{_target_: pathlib.Path.touch, _args_: [{path}]}}}}"
    config = {"_target_": "envs.offers.constraints.budget.Budget", "share": escapes * "\\" + reference}
    # two backslashes are an escaped backslash: the reference after it becomes part of a text that calls nothing
    refused = (
        (InstantiationException, "missing") if escapes == 2 else (ValueError, "hidden reference|names pathlib.Path")
    )
    with pytest.raises(refused[0], match=refused[1]):
        instantiate_stored(config, "x.pt")
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "collect out=log.parquet logging_policy=agent"])
@pytest.mark.parametrize("part", ["env", "algo"])
def test_a_checkpoint_runs_nothing(tmp_path, command, part):
    marker = tmp_path / "marker"
    config = {"env": {}, "algo": {}, "seed": 0, part: touch(marker)}
    save_state(tmp_path / "x.pt", "ppo", {"network": {}}, **config)
    script, *overrides = command.split()
    done = script_runner.run(tmp_path, script, "checkpoint=x.pt", *overrides)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "names torch.utils.collect_env.run, which is not run" in done.stderr
    assert not marker.exists()


@pytest.mark.slow
def test_a_checkpoint_without_a_configuration_is_refused(tmp_path):
    save_state(tmp_path / "x.pt", "cql", {})
    done = script_runner.run(tmp_path, "evaluate", "checkpoint=x.pt")
    assert (done.returncode, done.stderr) == (
        2,
        "error: x.pt: not a checkpoint of this project (without 'config.env')\n",
    )
    with pytest.raises(ValueError, match="x.pt: not a checkpoint of this project .without 'config.env'"):
        load_teacher(None, checkpoint=str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match="init=.*x.pt: not a checkpoint of this project .without 'config.env'"):
        load_start(str(tmp_path / "x.pt"), "cql", {"env": {}, "algo": {}})


def test_a_teacher_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    save_state(tmp_path / "teacher.pt", "cql", {}, env={}, algo=touch(marker), seed=0)
    with pytest.raises(ValueError, match="teacher.pt: its configuration names .*, which is not run"):
        load_teacher(SimpleNamespace(device=None), checkpoint=str(tmp_path / "teacher.pt"))
    assert not marker.exists()

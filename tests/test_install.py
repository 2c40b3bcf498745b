"""The wheel: it carries every package and conf/, and its command works without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
from setuptools import find_packages

from configs import CONF
from script_runner import PATIENCE
from scripts.__main__ import COMMANDS

ROOT = CONF.parent
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SMALL = [
    "env=offers_sequential",
    "env.num_agents=4",
    "env.evaluation.worlds=2",
    "env.evaluation.validation=2",
    "algo.total_steps=512",
    "device=cpu",
]


@pytest.fixture(scope="module")
def packages() -> list[str]:
    """The packages that setup.cfg lists."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup["options"]["packages"].split()


@pytest.fixture(scope="module")
def wheel(packages, tmp_path_factory) -> Path:
    """The wheel, built from a copy: files built in the checkout would stay there and go into the next wheel."""
    pytest.importorskip("pip", reason="comes with Python's own environments")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in {package.partition(".")[0] for package in packages} | {"conf"}:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel) -> SimpleNamespace:
    """An environment with the wheel, and an empty folder.

    The environment finds the wheel's requirements in the environment that runs the tests.
    """
    environment, folder = wheel.parent / "venv", wheel.parent / "empty"
    venv.create(environment, symlinks=os.name != "nt")
    pip("--python", environment, "install", "--no-deps", "--no-index", wheel)
    packages = next(environment.glob("lib/python*/site-packages"), environment / "Lib" / "site-packages")
    # Python searches a path in a .pth file, but reads no .pth file there, so that an editable checkout is not found
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "requirements.pth").write_text("\n".join(borrowed))
    folder.mkdir()
    return SimpleNamespace(
        packages=packages, folder=folder, bin=environment / ("Scripts" if os.name == "nt" else "bin")
    )


def pip(*arguments: str | Path) -> None:
    """Run pip, quietly."""
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def run(installed: SimpleNamespace, program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program of the environment in the empty folder."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed.bin / program, *arguments]
    return subprocess.run(command, cwd=installed.folder, env=clean, capture_output=True, text=True, timeout=PATIENCE)


def test_setup_cfg_lists_every_package(packages):
    top = {package.partition(".")[0] for package in packages}
    found = [package for package in find_packages(ROOT) if package.partition(".")[0] in top]
    assert sorted(packages) == sorted([*found, "crm_rl.conf"])


@pytest.mark.long
def test_the_wheel_carries_what_packages_need(wheel, packages):
    names = set(ZipFile(wheel).namelist())
    configs = {f"crm_rl/conf/{path.relative_to(CONF).as_posix()}" for path in CONF.rglob("*.yaml")}
    assert configs == {name for name in names if name.endswith(".yaml")}
    assert {f"{package}/py.typed" for package in ("crm_rl", "rlcore", "envs", "email_rl")} <= names
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {package.partition(".")[0] for package in packages}
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.long
def test_the_installed_command_trains_in_an_empty_folder(installed):
    place = run(installed, "python", "-c", "import rlcore; print(rlcore.__file__)")
    assert Path(place.stdout.strip()).is_relative_to(installed.packages), place.stderr
    done = run(installed, "crm-rl", "train", *SMALL, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((installed.folder / "out" / "metrics.json").read_text())["steps"] == 512
    assert [path.name for path in installed.folder.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_installed_command_lists_scripts_and_refuses_others(installed):
    listed = run(installed, "crm-rl", "--help")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == list(COMMANDS)
    assert all(line.split()[1:] for line in listed.stdout.splitlines()[2:])
    refused = run(installed, "crm-rl", "trian")
    assert refused.returncode == 2 and refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1 and "got 'trian'" in refused.stderr


def test_every_script_is_a_command():
    not_scripts = {"__init__", "__main__", "python_api"}
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert scripts - not_scripts == set(COMMANDS)

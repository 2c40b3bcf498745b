"""The pages of the documentation: their commands compose with conf/; files, names in the code and headings exist."""

from __future__ import annotations

import inspect
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from configs import CONF, composed
from envs.base import VectorEnv
from scripts.example_shop import write_shop as write_shop

ROOT = CONF.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "envs/offers/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LAUNCHERS = ("python", "torchrun")
HYDRA_FLAGS = {"--cfg", "--info", "-sc"}  # with their argument
END_OF_COMMAND = {"&&", "||", "|", ";", ">", "${@:2}"}  # the last is what a shell script was given
FOLDERS = "conf|crm_rl|docs|email_rl|envs|rlcore|scripts|tests"
FILES_OF_USERS = ("shop/", "env/world/shop.yaml", "mine/", "my_algos.py")  # pages tell users to make them
CHOICES_OF_USERS = ("shop", "shop_mails")
FILE_ENDS = {"md", "py", "yaml", "csv", "parquet", "json", "html"}
WITHOUT_CONFIG = {"example_shop", "summary"}  # take folders, and no overrides


class Command(NamedTuple):
    """A command line of a page: scripts/SCRIPT.py with its arguments."""

    place: str
    script: str
    arguments: tuple[str, ...]


def code_of(page: Path) -> Iterator[tuple[int, str]]:
    """Yield (number of the line, code): lines of blocks (continued lines joined), and code in a sentence."""
    fenced, continued, started = False, "", 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            started = started if continued else number
            continued += line.strip().removeprefix("$ ")
            if continued.endswith("\\"):
                continued = continued[:-1]
                continue
            yield started, continued
            continued = ""
        else:
            yield from ((number, code) for code in re.findall(r"`([^`]+)`", line))


def commands_of(page: Path) -> Iterator[Command]:
    for number, code in code_of(page):
        if not re.search(r"\b(?:python|torchrun) .*scripts[/.]", code):
            continue
        words = shlex.split(code, comments=True)
        words = words[next(place for place, word in enumerate(words) if word in LAUNCHERS) :]
        end = next((place for place, word in enumerate(words) if word in END_OF_COMMAND), len(words))
        start = next(place for place, word in enumerate(words) if re.match(r"scripts[/.]", word))
        script = words[start].removeprefix("scripts")[1:].removesuffix(".py")
        yield Command(f"{page.relative_to(ROOT)}:{number}", script, tuple(words[start + 1 : end]))


def distinct(commands: Iterator[Command]) -> list[Command]:
    """Keep each command once, at the first place where it stands."""
    return list({(command.script, command.arguments): command for command in reversed(list(commands))}.values())[::-1]


COMMANDS = distinct(command for page in PAGES for command in commands_of(page))


def choices(override: Override) -> list[str]:
    """Return what is composed for an override: all options of a group that are swept over, the first value of a key."""
    text = override.input_line
    if not override.is_sweep_override():
        return [text]
    options = [f"{text.partition('=')[0]}={value}" for value in override.sweep_string_iterator()]
    return options if (CONF / override.key_or_group).is_dir() else options[:1]


def combinations(arguments: list[str]) -> list[list[str]]:
    """Return the overrides of each job that differs from the others in a group; Hydra's own keys are left to Hydra."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    options = [choices(override) for override in overrides if not override.key_or_group.startswith("hydra")]
    first = [option[0] for option in options]
    return [
        first,
        *([*first[:place], other, *first[place + 1 :]] for place, option in enumerate(options) for other in option[1:]),
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """The folder that -cd names: the made-up shop's, with a few customers, and the algorithm of docs/extend.md."""
    folder = tmp_path_factory.mktemp("documented") / "shop"
    write_shop(folder, 3, 0)
    (algorithm,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL)
    (folder / "algo").mkdir()
    (folder / "algo" / "reinforce.yaml").write_text(algorithm)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_a_documented_command_composes(command, shop):
    assert (ROOT / "scripts" / f"{command.script}.py").is_file(), f"{command.place}: no scripts/{command.script}.py"
    if command.script in WITHOUT_CONFIG:
        return
    arguments = [
        argument.replace("…", "PLACEHOLDER") for argument in command.arguments if argument not in ("-m", "--help", "…")
    ]
    for flag in HYDRA_FLAGS & set(arguments):
        place = arguments.index(flag)
        del arguments[place : place + 2]
    search_path = []
    if "-cd" in arguments:
        place = arguments.index("-cd")
        del arguments[place : place + 2]
        search_path = [f"hydra.searchpath=[file://{shop}]"]
    if command.script == "bench" and "=" not in arguments[0]:
        arguments[0] = f"benchmark={arguments[0]}"
    try:
        for overrides in combinations(arguments):
            composed(*overrides, *search_path, name=command.script)
    except (HydraException, OmegaConfBaseException) as error:
        pytest.fail(f"{command.place}: {' '.join(command.arguments)}: {error}", pytrace=False)


def test_pages_have_commands():
    assert {command.script for command in COMMANDS} >= {
        "train",
        "evaluate",
        "collect",
        "bench",
        "import_sends",
        "plan",
        "write_email",
        "example_shop",
    }


def links_of(page: Path) -> list[tuple[str, str]]:
    """Return (file or nothing, heading or nothing) of a page's links; indented lines are formulas."""
    prose = "\n".join(line for line in page.read_text().splitlines() if not line.startswith("    "))
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [(file, heading) for file, _, heading in (link.partition("#") for link in links) if "://" not in file]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    named = re.findall(r"`([\w./-]+\.(?:py|yaml|md))`", text)
    named += re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    missing = [file for file, _ in links_of(page) if not (page.parent / file).exists()]
    missing += [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()]
    assert not [name for name in missing if not name.startswith(FILES_OF_USERS)]


def resolve(name: str) -> Any:
    """Import the object of a dotted name. Raises AttributeError or ImportError where there is none."""
    try:
        return pkgutil.resolve_name(name)
    except AttributeError:  # a field without a default, or what a constructor sets
        owner, _, field = name.rpartition(".")
        kind = pkgutil.resolve_name(owner)
        if field not in kind.__annotations__ and field not in inspect.signature(kind).parameters:
            raise
        return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_the_code_that_a_page_gives_exist(page):
    for name in re.findall(r"`((?:rlcore|envs|email_rl|scripts)\.[\w.]+)`", page.read_text()):
        resolve(name)


def keys_of(node: Any) -> Iterator[str]:
    """Yield the names of all keys in nested containers."""
    if isinstance(node, dict):
        yield from map(str, node)
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from keys_of(value)


@pytest.fixture(scope="module")
def known_keys() -> set[str]:
    """Names of keys and groups in conf/, and what is at hand in the code as `env`."""
    known = set(dir(VectorEnv))
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        packages = re.findall(r"@([\w.]+)", text)
        known |= {*keys_of(yaml.safe_load(text)), *path.relative_to(CONF).parts, *".".join(packages).split(".")}
    return known


def unknown_keys(text: str, known: set[str]) -> list[str]:
    """Return the keys below a group of conf/, and the choices of a group, that code in sentences names in vain."""
    groups = "|".join(path.name for path in CONF.iterdir() if path.is_dir())
    found = []
    for code in re.findall(r"`([^`\n]+)`", text):
        keys = re.findall(rf"(?<![\w./])((?:{groups})(?:\.\w+)+)(?![\w/])", code)
        found += [key for key in keys if not set(key.split(".")[1:]) <= known | FILE_ENDS]
        for group, choice in re.findall(r"(?<![\w./])([a-z_/]+)=([a-z]\w*(?:/\w+)*)(?=[\s,]|$)", code):
            is_shipped = (CONF / group / f"{choice}.yaml").exists() or choice in ("null", *CHOICES_OF_USERS)
            found += [] if is_shipped or not (CONF / group).is_dir() else [f"{group}={choice}"]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_and_choices_that_a_page_names_in_a_sentence_exist(page, known_keys):
    assert not unknown_keys(page.read_text(), known_keys)


def test_a_key_or_choice_that_does_not_exist_is_found(known_keys):
    text = "`env.reward.trps` `algo.gamma`, `algo=ppo2` and `env/observation=belief`, `env.world.seasn=[1]` `ope.json`"
    assert unknown_keys(text, known_keys) == ["env.reward.trps", "algo=ppo2", "env.world.seasn"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_headings(page):
    for file, anchor in links_of(page):
        if not anchor:
            continue
        headings = re.findall(r"^#+ (.+)$", (page.parent / file if file else page).read_text(), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{file}#{anchor}"

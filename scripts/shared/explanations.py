"""Errors of bad input in one line: of what Hydra could not compose, and of what could not be built."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from envs.configuration import CONF, compose_config
from envs.signatures import failed_part
from scripts.shared.overrides import SIMILAR, key_of, no_such_key

MUST_BE_QUOTED = "= , # ( ) [ ] { }"
WHERE = "HYDRA_FULL_ERROR=1 shows where"


def explained_input(error: Exception, config: Any) -> str | None:
    """Say in one line what in a job's input was wrong; None where the error is not about the input.

    ValueError and OSError say what was expected. Any other error of a class or function that the configuration names,
    while it is built, is named by its key.
    """
    if isinstance(error, InstantiationException):
        # Hydra wraps a constructor's error once, and an import's error twice.
        cause: BaseException = error
        while isinstance(cause, (InstantiationException, ImportError)) and cause.__cause__ is not None:
            cause = cause.__cause__
        return in_one_line(cause) if isinstance(cause, (ValueError, OSError)) else unbuilt(error)
    if isinstance(error, OmegaConfBaseException):
        return of_key(error)
    if isinstance(error, (ValueError, OSError)):
        return in_one_line(error)
    return explained_part(error, config)


def explained_part(error: Exception, config: Any) -> str | None:
    """Say which part of a configuration raised an error while it was built; None where none did, or the error says."""
    if isinstance(error, InstantiationException):
        return unbuilt(error) if isinstance(error.__cause__, TypeError) else None
    part = None if isinstance(error, (ValueError, OSError)) else failed_part(error, config)
    return part and f"{part}: {named(error)}; {WHERE}"


def unbuilt(error: InstantiationException) -> str:
    """Say which part could not be built, and why."""
    text = str(error)
    key = re.search(r"^ *full_key: (\S+)", text, re.MULTILINE)
    reason = " ".join(re.sub(r"^ *full_key: .*", "", text, flags=re.MULTILINE).split())
    return f"{key[1] + ': ' if key else ''}{reason}; {WHERE}"


def of_key(error: OmegaConfBaseException) -> str:
    """Say what is wrong with a key of a configuration."""
    if isinstance(error, (ConfigKeyError, AttributeError)):
        return f"{error.full_key}: expected a value, got no such key"
    reason = str(error).strip().partition("\n")[0] or in_one_line(error.__cause__ or error)
    return f"{error.full_key}: {reason}" if error.full_key else reason


def in_one_line(error: BaseException) -> str:
    """Return an error's text, or its kind where it has none, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def named(error: BaseException) -> str:
    """Return an error's kind and text in one line."""
    return f"{type(error).__name__}: {in_one_line(error)}"


def explained(error: Exception, config_name: str) -> str:
    """Say in one line why Hydra could not compose what the command line asks for, or not make the run's folder."""
    if isinstance(error, HydraException):
        return uncomposed(error, config_name)
    if isinstance(error, OSError):
        return f"hydra.run.dir: {error.filename}: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return f"{undecoded(error) or 'a configuration file'}: expected UTF-8, got {error.reason} at byte {error.start}"
    if isinstance(error, RecursionError):
        return "defaults: a configuration file's defaults list leads back to itself"
    if isinstance(error, OmegaConfBaseException):
        return of_key(error)
    unset = [override.key_or_group for override in overrides_of_line() if override.value() is None]
    groups = [key for key in unset if key in groups_of_conf()]
    if isinstance(error, ValueError) and groups:
        return f"{groups[0]}: expected a choice of the group, got null"
    return in_one_line(error) if isinstance(error, (ValueError, YAMLError)) else named(error)


def undecoded(error: UnicodeDecodeError) -> Path | None:
    """Return the file in the folder of -cd whose bytes are not UTF-8."""
    arguments, _ = get_args_parser().parse_known_args(sys.argv[1:])
    files = Path(arguments.config_dir).rglob("*.yaml") if arguments.config_dir else ()
    return next((path for path in files if path.is_file() and error.object in path.read_bytes()), None)


def uncomposed(error: HydraException, config_name: str) -> str:
    """Say in one line what of the command line Hydra could not compose."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if found := re.match(r"Ambiguous value for argument '(.*)'\n", text):
        return f"{found[1]}: several values: -m runs each of them; {quoted(found[1])} is one"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        near = get_close_matches(option, error.options, n=1, cutoff=SIMILAR)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{group}={option}: no such choice; {meant}expected {', '.join(error.options)}"
    if found := re.match(r"Could not append to config. An item is already at '(.*)'", text):
        return f"{found[1]}: stands in the configuration; expected {found[1]}=VALUE, without a plus"
    if (found := re.match(r"Error merging override (.*)", text)) and error.__cause__:
        return f"{key_of(found[1])}: {str(error.__cause__).splitlines()[0]}"
    if found := re.match(r"In '(.*)': Could not override '(.*)'\. No match", text):
        return f"{found[1]}.yaml: chooses {found[2]}, which {config_name} does not have: expected a file without it"
    if found := re.match(r"Could not (?:override|delete from config\.) '(.*)'", text):
        return unknown(found[1], config_name)
    if isinstance(error, InstantiationException):
        return unbuilt(error)
    return in_one_line(error if text.strip() else error.__cause__ or error)


def unreadable(override: str) -> str:
    """Say how to write an override that Hydra can't read."""
    if "=" not in override:
        return f"{override}: expected KEY=VALUE"
    beyond = "" if override.isascii() else " or letters beyond ASCII"
    return f"{override}: quote values that hold {MUST_BE_QUOTED}{beyond}: {quoted(override)}"


def quoted(override: str) -> str:
    """Write an override for a shell, its value in quotes of its own."""
    key, _, value = override.partition("=")
    return f"""'{key}="{value.strip('"')}"'"""


def unknown(key: str, config_name: str) -> str:
    """Say that the command line's configuration has no such key, and which one is like it."""
    if "/" in key:
        near = get_close_matches(key, groups_of_conf(), n=1, cutoff=SIMILAR)
        return f"{key}: no such group" + (f"; did you mean {near[0]}?" if near else "")
    arguments, _ = get_args_parser().parse_known_args(sys.argv[1:])
    overrides = overrides_of_line()
    if key.startswith("env.") and any(override.key_or_group == "checkpoint" for override in overrides):
        return f"{key}: no such key here; one of the checkpoint's own environment is written +{key}=VALUE"
    rest = [first_choice(override) for override in overrides if override.key_or_group != key]
    if arguments.config_dir:
        rest.append(f"hydra.searchpath=['file://{Path(arguments.config_dir).resolve()}']")
    try:
        return no_such_key(key, compose_config(*rest, name=config_name, with_hydra=key.startswith("hydra.")))
    except HydraException:  # there is more that is wrong
        return f"{key}: no such key"


def overrides_of_line() -> list[Override]:
    """Return the overrides of the command line."""
    arguments, _ = get_args_parser().parse_known_args(sys.argv[1:])
    return OverridesParser.create().parse_overrides(arguments.overrides)


def groups_of_conf() -> list[str]:
    """Return the paths of all groups of conf/."""
    return [path.relative_to(CONF).as_posix() for path in sorted(CONF.rglob("*")) if path.is_dir()]


def first_choice(override: Override) -> str:
    """Return an override, the first of the values that are swept over."""
    if not override.is_sweep_override():
        return override.input_line or ""
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"

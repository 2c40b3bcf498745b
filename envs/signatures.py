"""Configurations held against the signatures of the classes and functions that they name (`_target_`)."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from traceback import walk_tb
from types import CodeType
from typing import Any

from envs.configuration import OWN_PACKAGES
from envs.range_checks import plain

TARGET, PARTIAL, POSITIONAL, CLASS = "_target_", "_partial_", "_args_", "hydra.utils.get_class"
OF_HYDRA = (TARGET, PARTIAL, POSITIONAL, "_convert_", "_recursive_")  # keys of a part that are not given to its target
PLAIN = ("str", "int", "float", "bool", "list", "dict")  # what has a range, or a message of its own, where it is null
NULLABLE = ("None", "Any", "object")  # words of annotations that admit null

Parameters = Mapping[str, inspect.Parameter]


def check_signatures(config: Any) -> None:
    """Raise ValueError, in one line that names key and class, where a class can't be given what a configuration says.

    A part is a mapping with a `_target_`. Its target must exist and take the part's keys, and each parameter that has
    no default must stand among the keys. A parameter of our own classes that is a Callable must be given a part; where
    a part is null, the annotation must have None.
    """
    for key, part in parts_of(plain(config)):
        target = located(key, part[TARGET])
        name = f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else str(target)
        if part[TARGET] == CLASS:
            located(f"{key}.path", part.get("path"))
        parameters = parameters_of(target)
        if parameters is None:
            continue
        check_keys(key, part, name, parameters)
        if name.partition(".")[0] in OWN_PACKAGES:
            for parameter in parameters.values():
                if parameter.name in part and parameter.annotation is not parameter.empty:
                    check_kind(f"{key}.{parameter.name}", part[parameter.name], name, str(parameter.annotation))


def parts_of(node: Any, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """Yield (path, part) of all parts in nested containers, inner ones first."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        if isinstance(value, (dict, list)):
            yield from parts_of(value, f"{prefix}{name}.")
    if isinstance(node, dict) and TARGET in node:
        yield prefix.removesuffix("."), node


def located(key: str, target: Any) -> Callable:
    """Return the class or function that a part names. Raises ValueError where there is none."""
    where = key if key.endswith(".path") else f"{key}.{TARGET}"
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, TypeError) as error:
        reason = f": {error}" if isinstance(error, ImportError) else ""
        raise ValueError(f"{where}: expected the name of a class or function, got '{target}'{reason}") from error
    if not callable(found):
        raise ValueError(f"{where}: expected the name of a class or function, got '{target}'")
    return found


def parameters_of(target: Callable) -> Parameters | None:
    """Return what a target can be given, None where Python can't tell.

    A subclass that passes **keywords on is given the parameters of its base too. One of a package of a user's own may
    give some of these itself, so that none of them is needed.
    """
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (ValueError, TypeError):
        return None
    base = target.__base__ if isinstance(target, type) else None
    if base not in (None, object) and passes_on(parameters):
        above = parameters_of(base) or {}
        if target.__module__.partition(".")[0] not in OWN_PACKAGES:
            above = {name: p if p.default is not p.empty else p.replace(default=None) for name, p in above.items()}
        own = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        return {**above, **own}
    return parameters


def passes_on(parameters: Parameters) -> bool:
    """Tell whether parameters end with **keywords."""
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_keys(key: str, part: dict, name: str, parameters: Parameters) -> None:
    """Raise ValueError where a part has a key that its target does not take, or lacks one that the target needs."""
    takes = [p.name for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    strange = [x for x in part if x not in (*OF_HYDRA, *takes)]
    if strange and not passes_on(parameters):
        place = f"{key}.{strange[0]}"
        raise ValueError(f"{place}: {name} takes {', '.join(takes) or 'no key'}; ~{place} leaves this key out")
    # what calls a partial later gives positional arguments
    given_later = () if part.get(PARTIAL) is not True else (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    needed = [
        p.name for p in parameters.values() if p.name in takes and p.kind not in given_later and p.default is p.empty
    ]
    missing = [x for x in needed[len(part.get(POSITIONAL, [])) :] if x not in part]
    if missing:
        raise ValueError(f"{key}.{missing[0]}: expected a value, which {name} needs, got no such key")


def check_kind(key: str, value: Any, name: str, annotation: str) -> None:
    """Raise ValueError where a parameter of our own classes is given null, or no part, against its annotation."""
    if value is None and not annotation.startswith(PLAIN) and not any(word in annotation for word in NULLABLE):
        raise ValueError(f"{key}: expected {annotation}, which {name} needs, got null")
    if value is None or not annotation.startswith("Callable"):
        return
    if not isinstance(value, dict) or TARGET not in value:
        raise ValueError(f"{key}: expected a part with a {TARGET}, which {name} needs, got {shortened(value)}")


def shortened(value: Any) -> str:
    """Write a value of a configuration in a few words."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def failed_part(error: BaseException, config: Any) -> str | None:
    """Return the path and the class of the innermost part whose constructor raised an error; None where none did."""
    codes: dict[CodeType, str] = {}
    for key, part in parts_of(plain(config)):
        code = getattr(getattr(located(key, part[TARGET]), "__init__", None), "__code__", None)
        if code is not None:  # of a class in Python
            codes.setdefault(code, f"{key}: {part[TARGET]}")
    building = [codes[frame.f_code] for frame, _ in walk_tb(error.__traceback__) if frame.f_code in codes]
    return building[-1] if building else None

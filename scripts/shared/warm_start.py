"""Start a training from the policy, or the twin, of an earlier one: init=PATH, or resume=PATH with new data."""

from __future__ import annotations

from typing import Any

from envs.configuration import require_parts
from rlcore.algorithm import Algorithm
from rlcore.runs import checkpoint
from scripts.shared.cli import flatten_keys

SHOWN = 3  # names in a message, at most
PARTS = ("network", "critic", "auxiliary", "twin.hidden")  # of algo: what has weights

OF_NETWORKS = ("hidden", "heads", "activation.path", "_target_")  # keys that say how a network computes
OF_PRICES = ("price_range", "drift_range")  # of env: by which an observation writes the price


def load_start(path: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Load the checkpoint that a training of algo=`name` under `config` starts from.

    Raises ValueError where it is another algorithm's, or has other networks or actions.
    """
    state = checkpoint.load(path)
    check_start(f"init={path}", state, name, config)
    return state


def check_start(where: str, state: dict[str, Any], name: str, config: dict[str, Any]) -> None:
    """Raise ValueError, which begins with `where`, if a training can't start from the checkpoint `state`."""
    require_parts(state["config"], ["env", "algo"], where)
    if state["name"] != name:
        raise ValueError(f"{where}: expected a policy of algo={name}, got one of algo={state['name']}")
    before, now = (flatten_keys({"algo": x["algo"]}) for x in (state["config"], config))
    for key in sorted(before.keys() | now.keys()):
        is_network = any(key.startswith(f"algo.{part}") for part in PARTS) and key.endswith(OF_NETWORKS)
        if is_network and before.get(key) != now.get(key):
            raise ValueError(f"{where}: other networks: {key} was {before.get(key)}, is {now.get(key)}")
    for key in OF_PRICES:
        old, new = (x["env"].get(key) for x in (state["config"], config))
        if old != new:
            raise ValueError(f"{where}: its policy sees prices on another scale: env.{key} was {old}, is {new}")
    old_actions, new_actions = (names_of_actions(x) for x in (state["config"], config))
    if old_actions != new_actions:
        raise ValueError(f"{where}: other actions: {difference(old_actions, new_actions)}")


def names_of_actions(config: dict[str, Any]) -> list[str]:
    """Return the offers and channels of a configuration's catalogue; empty where it has none."""
    catalogue = config["env"].get("catalogue") or {}
    return [f"{kind} {name}" for kind in ("offers", "channels") for name in catalogue.get(kind, {})]


def check_inputs(where: str, state: dict[str, Any], algorithm: Algorithm) -> None:
    """Raise ValueError, with names, where a policy of a checkpoint sees other columns than an algorithm's."""
    if "inputs" not in state:
        raise ValueError(f"{where}: of a version that did not name its policy's columns")
    old, new = state["inputs"], algorithm.input_names
    if old != new:
        raise ValueError(f"{where}: its policy sees other columns: {difference(old, new)}")


def difference(old: list[str], new: list[str]) -> str:
    """Say in names how two lists differ."""
    said = [
        f"{what} {', '.join(map(repr, names[:SHOWN]))}{f' and {len(names) - SHOWN} more' * (len(names) > SHOWN)}"
        for what, names in (
            ("only there", [x for x in old if x not in new]),
            ("only here", [x for x in new if x not in old]),
        )
        if names
    ]
    return "; ".join(said) or "the same in another order"

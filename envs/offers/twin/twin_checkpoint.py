"""Read the checkpoint of a twin of a given kind."""

from __future__ import annotations

from rlcore.runs import checkpoint


def read_twin(path: str, key: str, expected: str) -> dict:
    """Load the checkpoint of a twin of any kind that the configuration's `key` names; `expected` is its choice.

    Raises ValueError where there is no path, no checkpoint, or another algorithm's.
    """
    if not path:
        raise ValueError(
            f"{key}: expected the path of a checkpoint of algo=twin {expected}, as in {key}=outputs/…/checkpoint.pt"
        )
    state = checkpoint.load(path)
    if state.get("name") != "twin":
        raise ValueError(f"{key}={path}: expected a checkpoint of algo=twin, got {state.get('name')}")
    return state


def twin_kind(path: str, key: str) -> str | None:
    """Return the kind of twin in a checkpoint that the configuration's `key` names; None of an earlier version."""
    return read_twin(path, key, "algo/twin=neural | structural")["agent"].get("kind")


def load_twin(path: str, key: str, kind: str, advice: str) -> dict:
    """Load the checkpoint of a twin of one kind that the configuration's `key` names.

    `kind` is the name of the kind of twin in TwinModel.state_dict. `advice` says how a twin of the other kind is used.
    Raises ValueError where there is no path, no checkpoint, or a checkpoint of another kind.
    """
    state = read_twin(path, key, f"algo/twin={kind}")
    found = state["agent"].get("kind")
    if found is None:
        raise ValueError(f"{key}={path}: expected the checkpoint of a {kind} twin, got one of an earlier version")
    if found != kind:
        raise ValueError(f"{key}={path}: a {found} twin, {advice}")
    return state

"""Read the checkpoint of a twin of a given kind."""

from __future__ import annotations

from rlcore.runs import checkpoint


def load_twin(path: str, key: str, kind: str, advice: str) -> dict:
    """Load the checkpoint of algo=twin that the configuration's `key` names.

    `kind` is the name of the kind of twin in TwinModel.state_dict. `advice` says how a twin of the other kind is used.
    Raises ValueError where there is no path, no checkpoint, or a checkpoint of another kind.
    """
    if not path:
        raise ValueError(
            f"{key}: expected the path of a checkpoint of algo=twin algo/twin={kind}, as in "
            f"{key}=outputs/…/checkpoint.pt"
        )
    state = checkpoint.load(path)
    if state.get("name") != "twin":
        raise ValueError(f"{key}={path}: expected a checkpoint of algo=twin, got {state.get('name')}")
    found = state["agent"].get("kind")
    if found is None:
        raise ValueError(f"{key}={path}: expected the checkpoint of a {kind} twin, got one of an earlier version")
    if found != kind:
        raise ValueError(f"{key}={path}: a {found} twin, {advice}")
    return state

"""Read the checkpoint of a twin."""

from __future__ import annotations

from rlcore.runs import checkpoint

KIND = "structural, with random effects"  # what a checkpoint of algo=twin says of its members


def load_twin(path: str, key: str) -> dict:
    """Load the checkpoint of a twin that the configuration's `key` names.

    Raises ValueError where there is no path, no checkpoint, another algorithm's, one of an earlier version, or one
    without a fitted member.
    """
    if not path:
        raise ValueError(f"{key}: expected the path of a checkpoint of algo=twin, as in {key}=outputs/…/checkpoint.pt")
    state = checkpoint.load(path)
    if state.get("name") != "twin":
        raise ValueError(f"{key}={path}: expected a checkpoint of algo=twin, got {state.get('name')}")
    if state["agent"].get("kind") != KIND:
        raise ValueError(
            f"{key}={path}: expected a checkpoint of algo=twin of this version, got one of an earlier version"
        )
    if not state["agent"]["iteration"]:
        raise ValueError(f"{key}={path}: expected a twin with at least one fitted member, got none")
    return state

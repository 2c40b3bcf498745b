"""The files of a package, and their checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST, GRAPH, EXAMPLES, OBSERVATION = "package.json", "decide.onnx", "examples.parquet", "observation.pt"
MANIFEST_SUM = f"{MANIFEST}.sha256"  # as `sha256sum -c` reads it
#: parts of package.json, and their types
PARTS: dict[str, type | tuple[type, ...]] = {
    "columns": list,
    "transform": dict,
    "env": dict,
    "num_features": int,
    "prices": list,
    "drift": (int, float),
    "files": dict,
    "examples": dict,
}


def graph_notes(manifest: dict[str, Any]) -> dict[str, str]:
    """Return what a graph is written for, as checksums that lie in it."""
    env = manifest["env"]
    parts = {
        "catalogue": env["catalogue"],
        "season": env["world"]["season"],
        "columns": [manifest["columns"], manifest["transform"]],
        "view": [env["observation"], env["contact_rules"]["caps"]],
    }
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in parts.items()}


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return package.json and the bytes of all other files; raise ValueError where a checksum does not agree."""
    text = read_bytes(folder, MANIFEST)
    if read_bytes(folder, MANIFEST_SUM).split()[:1] != [hashlib.sha256(text).hexdigest().encode()]:
        raise ValueError(f"{folder}: damaged: {MANIFEST} is not what was written (its SHA-256 differs)")
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST}: expected JSON ({error})") from error
    for part, kind in PARTS.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(part), kind):
            raise ValueError(f"{folder / MANIFEST}: not a package of this project (without '{part}')")
    files = {}
    for name, expected in manifest["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{folder / MANIFEST}: expected files of its own folder, got '{name}'")
        files[name] = read_bytes(folder, name)
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise ValueError(f"{folder}: damaged: {name} is not what was written (its SHA-256 differs)")
    for name in (GRAPH, EXAMPLES):
        if name not in files:
            raise ValueError(f"{folder / MANIFEST}: not a package of this project (without '{name}')")
    return manifest, files


def read_bytes(folder: Path, name: str) -> bytes:
    """Return a file's bytes; raise ValueError where it is missing."""
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder}: not a package: {name}: {error.strerror}") from error

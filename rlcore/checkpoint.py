"""Files that are whole or not there: written under a temporary name, synced to disk, then renamed.

A temporary file is locked while its writer lives. The next writer in the same folder removes the unlocked ones, which
killed processes left.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rlcore.divergence import check_weights

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked, and so nothing is taken for abandoned
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".crm-rl-tmp"  # ends the names of temporary files and folders
REPLACED = ".crm-rl-old"  # ends the name of a folder that is being replaced
PARTS = {"name": str, "agent": dict, "config": dict, "logger": dict}  # of every checkpoint


def atomic(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync the file to disk, and put it in its place.

    Raises OSError where the disk refuses; what was at `path` before stays.
    """
    path = Path(path)
    with suppress(OSError):  # a folder that can't be read is said below
        sweep(path.parent)
    try:
        descriptor, temporary = _open_temporary(path)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # a temporary file is its owner's alone; a result is as any file
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def atomic_folder(path: Path | str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `path`, sync its files, and put it in its place.

    Raises OSError where the disk refuses; what was at `path` before is put back.
    """
    path = Path(path)
    with suppress(OSError):
        sweep(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent))
    except OSError as error:
        raise _not_written(path, error) from error
    descriptor = os.open(temporary, os.O_RDONLY)
    _lock(descriptor)
    replaced = temporary.with_suffix(REPLACED)
    try:
        write(temporary)
        temporary.chmod(0o777 & ~_umask())
        for part in temporary.rglob("*"):
            _sync(part)
        if path.exists():
            os.replace(path, replaced)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        os.close(descriptor)


def sweep(folder: Path | str) -> None:
    """Remove from a folder what writers left that were killed; put back a folder that one was replacing."""
    for left in Path(folder).glob(f".*{REPLACED}"):
        name = left.name[1 : -len(REPLACED)].rpartition(".")[0]
        if left.with_suffix(TEMPORARY).exists() and _is_locked(left.with_suffix(TEMPORARY)):
            continue
        if (Path(folder) / name).exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            os.replace(left, Path(folder) / name)
    for left in Path(folder).glob(f".*{TEMPORARY}"):
        if _is_locked(left):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def lock_folder(folder: Path | str) -> int:
    """Lock a folder for the rest of this process. Raises ValueError where a running process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    if not _lock(descriptor):
        os.close(descriptor)
        raise ValueError(f"{folder}: another run is writing into this folder; expected a hydra.run.dir of its own")
    return descriptor


def save(path: Path | str, state: dict) -> None:
    """Write a checkpoint of tensors, numbers, strings and containers of them, with the version that wrote it.

    Raises ValueError where a learned weight is not finite: the last finite checkpoint stays.
    """
    check_weights(state["agent"], "not saved")

    def write(temporary: Path) -> None:
        try:
            torch.save({**state, "version": version()}, temporary)
        except RuntimeError as error:  # PyTorch's word for a disk that is full
            raise OSError(str(error).splitlines()[0]) from error

    atomic(path, write)


def load(path: Path | str) -> dict:
    """Read a checkpoint onto the CPU without running code from it.

    Raises ValueError where the file is no checkpoint, where a checksum does not match, and where a weight that was
    learned is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch writes checksums and does not read them
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of this project ({type(error).__name__})") from error
    if damaged:
        raise ValueError(f"{path}: damaged: the checksum of {damaged} does not match")
    for part, kind in PARTS.items():
        if not isinstance(state, dict) or not isinstance(state.get(part), kind):
            raise ValueError(f"{path}: not a checkpoint of this project (without '{part}')")
    check_weights(state["agent"], str(path))
    return state


def version() -> str:
    """Return the version of this project, as installed."""
    try:
        return metadata.version("crm-rl")
    except metadata.PackageNotFoundError:
        return "unknown"


def save_json(path: Path | str, value: Any) -> None:
    """Write a result file of valid JSON: what is undefined, such as an interval over one customer, is null."""
    text = json.dumps(_undefined_as_none(value), indent=2, allow_nan=False) + "\n"
    atomic(path, lambda temporary: temporary.write_text(text))


def _undefined_as_none(value: Any) -> Any:
    """Replace NaN and infinity in nested containers by None."""
    if isinstance(value, dict):
        return {key: _undefined_as_none(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_undefined_as_none(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_temporary(path: Path) -> tuple[int, Path]:
    """Create a temporary file for `path`, which nobody else can have made, and lock it."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # swept by another process in the moment before it was locked


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; tell whether nobody else holds it. Some disks can't lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_locked(path: Path) -> bool:
    """Tell whether a process holds a file or folder, or whether that can't be known."""
    if fcntl is None or path.is_symlink():
        return fcntl is None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync(path: Path) -> None:
    """Have the operating system write a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Return the permissions that new files of this process lack."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _not_written(path: Path, error: OSError) -> OSError:
    return OSError(f"{path}: not written: {error.strerror or error}; what was there before is kept")

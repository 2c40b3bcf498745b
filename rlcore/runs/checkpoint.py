"""Files that are either complete or absent: written under a temporary name, synced to disk, then renamed.

A temporary file is locked while its writer lives. The next writer in the same folder removes unlocked temporary files,
which killed processes left.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rlcore.runs.divergence import check_weights

try:
    import fcntl
except ImportError:  # not a POSIX system: without locks, no file counts as abandoned
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".crm-rl-tmp"  # suffix of temporary files and folders
LOCK = ".crm-rl-lock"  # suffix of the file that a lock is held on
REPLACED = ".crm-rl-old"  # suffix of a folder that is being replaced
PARTS = {"name": str, "agent": dict, "config": dict, "logger": dict}  # parts of every checkpoint, and their types


def atomic(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync the file to disk, and rename it to `path`.

    Raises OSError where the disk refuses; the old file at `path` then stays.
    """
    path = Path(path)
    with _refusals_in_one_line(path):
        descriptor, temporary = _open_temporary(path)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes a file private; a result is as readable as a new file
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


def atomic_folder(path: Path | str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `path`, sync its files, and rename the folder to `path`.

    Raises OSError where the disk refuses; the old folder at `path` is then put back.
    """
    path = Path(path)
    with _refusals_in_one_line(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent))
        descriptor = os.open(temporary, os.O_RDONLY)
        _lock(descriptor)
        replaced = temporary.with_suffix(REPLACED)
        try:
            write(temporary)
            temporary.chmod(0o777 & ~_umask())
            for part in (*temporary.rglob("*"), temporary):
                _sync(part)
            if path.exists():
                os.replace(path, replaced)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            if replaced.exists() and not path.exists():
                os.replace(replaced, path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
            os.close(descriptor)


def sweep(folder: Path | str) -> None:
    """Remove the temporary files of killed writers from a folder; move back a folder that a killed writer had moved."""
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


@contextmanager
def locked_folder(folder: Path | str, taken: str) -> Iterator[None]:
    """Lock a folder in this context; raise ValueError, which says `taken`, where this process or another holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise ValueError(f"{folder}: {taken}")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def only_writer(path: Path | str) -> Iterator[None]:
    """Lock a file that is read, changed and replaced; raise ValueError at once where another process holds it."""
    path = Path(path)
    while True:
        lock = path.with_name(f".{path.name}{LOCK}")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            raise ValueError(f"{path}: another process is writing this file; try again when that has ended")
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # the last holder has removed the lock before it was ours
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def save(path: Path | str, state: dict) -> None:
    """Write a checkpoint of tensors, numbers, strings and containers of them, with the version that wrote it.

    Raises ValueError where a learned weight is not finite; the last finite checkpoint then stays.
    """
    check_weights(state["agent"], "not saved")

    def write(temporary: Path) -> None:
        try:
            torch.save({**state, "version": version()}, temporary)
        except RuntimeError as error:  # PyTorch raises this where the disk is full
            raise OSError(f"the disk took only a part, is it full? ({str(error).splitlines()[0]})") from error

    atomic(path, write)


def load(path: Path | str) -> dict:
    """Read a checkpoint onto the CPU without running code from it.

    Raises ValueError where the file is no checkpoint, where a checksum does not match, and where its iteration is no
    count or a learned weight is not finite.
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
    iteration = state["agent"].get("iteration", 0)
    if not isinstance(iteration, int) or isinstance(iteration, bool) or iteration < 0:
        raise ValueError(f"{path}: agent.iteration: expected a whole number from 0, got {iteration!r}")
    check_weights(state["agent"], str(path))
    return state


def version() -> str:
    """Return the version of this project, as installed."""
    try:
        return metadata.version("crm-rl")
    except metadata.PackageNotFoundError:
        return "unknown"


def save_json(path: Path | str, value: Any) -> None:
    """Write a result file of valid JSON; undefined values, such as an interval over one sample, are null."""
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
    """Create and lock a temporary file for `path`, under a name that no other process has."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # another process has removed the file before it was locked


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; return False where another process holds it.

    Returns True where the system or the disk can't lock.
    """
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
    """Tell whether a process holds a file or folder; true where that is unknown."""
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
    """Make the operating system write a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Return the permissions that this process withholds from new files."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def _refusals_in_one_line(path: Path) -> Iterator[None]:
    """Sweep the folder of `path`; an error of the disk in this context names `path`, saying that the old file stays."""
    with suppress(OSError):  # a folder that can't be read raises its error in the context
        sweep(path.parent)
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: not written: {error.strerror or error}; what was there before is kept") from error

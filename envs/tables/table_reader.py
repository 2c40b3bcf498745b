"""Read a CSV or Parquet file into columns, with one-line errors that name file, row and column."""

from __future__ import annotations

import csv
from pathlib import Path

from envs.tables.column_kinds import Columns, to_column
from rlcore.offline.file_columns import arrow

PARQUET = (".parquet", ".pq")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
HEADER_CHUNK = 1 << 16  # bytes read at once in search of the end of the first line


def read_table(
    path: str | None,
    separator: str,
    *,
    text: list[str],
    numbers: list[str],
    rows: str,
    where: str,
    only: list[str] | None = None,
    may_be_empty: bool = False,
) -> Columns:
    """Return a file's columns; raise ValueError, with file, row and column, where it is no table.

    `only` names the columns that are read (None: all). A file without rows is refused unless it `may_be_empty`. `rows`
    says what a row is and `where` is the part of the configuration that has `path` and `separator`, in messages.
    A column is text if `text` names it. Otherwise it holds what the file says (Parquet), or what most of its entries
    are (envs/tables/column_kinds.py). Columns in `numbers` must hold numbers. Line ends, compression and a
    byte-order mark don't matter. A first column without a name, such as an index of pandas, is left out. Messages count
    rows from 1, the header's.
    """
    table = load_table(path, separator, where=where, only=only)
    assert path is not None  # load_table refuses to read without a path
    if not table.num_rows and not may_be_empty:
        raise ValueError(f"{path}: expected {rows}, got no row")
    return {
        name: to_column(values, path, name, name in text, name in numbers, f"{where}.text")
        for name, values in zip(table.column_names, table.columns)
    }


def load_table(path: str | None, separator: str, *, where: str = "", only: list[str] | None = None):
    """Return a file as a pyarrow.Table, that of a CSV being of texts; raise ValueError as `read_table` does.

    Without `where` the key of the separator is `separator`, and the caller has a key of its own for the path.
    """
    if not path:
        raise ValueError(f"{where}.path: expected the path of a CSV or Parquet file")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file" + (f" ({where}.path)" if where else ""))
    pa = arrow()
    try:
        if Path(path).suffix.lower() in PARQUET:
            table = pa.parquet.read_table(path, page_checksum_verification=True)
            names = table.column_names
        else:
            names = header_names(path, separator)
            table = None
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from error
    names = [name.strip() for name in names]
    check_names(path, names, separator, where)
    absent = [name for name in only or [] if name not in names]
    if absent:
        raise ValueError(f"{path}: no column '{absent[0]}' (named in {where}); there are {', '.join(names)}")
    wanted = [k for k, name in enumerate(names) if name and (only is None or name in only)]
    table = read_csv(path, separator, len(names), wanted) if table is None else table.select(wanted)
    return table.rename_columns([names[k] for k in wanted])


def unreadable(path: str, error: Exception) -> ValueError:
    """Return the error of a file that is no table."""
    return ValueError(f"{path}: can't be read as a table: {str(error).splitlines()[0]}")


def header_names(path: str, separator: str) -> list[str]:
    """Read the names in the first line of a CSV file."""
    with arrow().input_stream(path) as file:
        line = b""
        while (chunk := file.read(HEADER_CHUNK)) and b"\n" not in chunk and b"\r" not in chunk:
            line += chunk
        line += chunk
    first_line = line.decode("utf-8-sig", "strict" if len(line) < HEADER_CHUNK else "ignore").splitlines()[:1]
    if not first_line or not first_line[0].strip():
        raise csv.Error("no columns in its first line")
    return next(csv.reader(first_line, delimiter=separator))


def check_names(path: str, names: list[str], separator: str, where: str) -> None:
    """Raise ValueError where a column has no name, or the name of another."""
    if len(names) == 1:
        found = [word for sign, word in SEPARATORS.items() if sign != separator and sign in names[0]]
        if found:
            key = f"{where}.separator" if where else "separator"
            raise ValueError(f"{path}: row 1: expected columns separated by '{separator}', got {found[0]} ({key})")
    if "" in names[1:]:
        number = names.index("", 1) + 1
        raise ValueError(
            f"{path}: row 1, column {number}: expected a name, got nothing (a separator too many, or an index?)"
        )
    double = [name for k, name in enumerate(names) if name in names[:k]]
    if double:
        raise ValueError(f"{path}: column '{double[0]}' comes twice")


def read_csv(path: str, separator: str, width: int, wanted: list[int]):
    """Read the wanted columns of a CSV file, below its first line, as a pyarrow.Table of texts."""
    pa = arrow()
    names = [str(k) for k in range(width)]
    included = [names[k] for k in wanted]
    try:
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(use_threads=False, skip_rows=1, column_names=names),
            parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=included
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return pa.table({name: pa.array([], pa.string()) for name in included})
        raise unreadable(path, error) from error
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def check_ids(ids: list[str], name: str, path: str) -> None:
    """Raise ValueError, with row and column, where an id is empty, has a NUL byte or comes twice."""

    def refuse(wrong: list[bool], problem: str) -> None:
        raise ValueError(f"{path}: row {wrong.index(True) + 2}, column '{name}': {problem}")

    distinct = set(ids)
    if "" in distinct:
        refuse([not x for x in ids], "expected an id, got nothing")
    if "\0" in "".join(ids):
        refuse(["\0" in x for x in ids], "expected an id without a NUL byte")
    if len(distinct) == len(ids):
        return
    first: dict[str, int] = {}  # row of each id
    for k, x in enumerate(ids):
        if first.setdefault(x, k) != k:
            raise ValueError(f"{path}: row {k + 2}, column '{name}': id '{x}' is that of row {first[x] + 2} too")

"""Parquet files with a checksum of every page: a damaged file is refused by name, not read as other numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcore.offline.file_columns import arrow


def parquet_writer(path: Path, schema, dictionaries: bool | list[str] = True):
    """Open a file to write tables of a pyarrow.Schema; `dictionaries` names the columns of few values, True is all."""
    return arrow().parquet.ParquetWriter(
        str(path), schema, compression="zstd", use_dictionary=dictionaries, write_page_checksum=True
    )


def read_parquet(path: Path | str, columns: list[str] | None = None, filters: list[tuple] | None = None) -> Any:
    """Return some columns of a file, None: all, as a pyarrow.Table of the rows that `filters` leave.

    Raises ValueError, with the file, where it can't be read, has no such column, or a checksum does not match.
    """
    pa = arrow()
    try:
        return pa.parquet.read_table(path, columns=columns, filters=filters, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: can't be read: {str(error).splitlines()[0]}") from error

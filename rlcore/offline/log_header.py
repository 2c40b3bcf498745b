"""What the name, the header and the footer of a file of logged decisions say, before a row is read."""

from __future__ import annotations

from pathlib import Path

from rlcore.offline.file_columns import arrow

CSV_ENDINGS = {".csv": None, ".csv.gz": "gzip", ".csv.bz2": "bz2", ".csv.zst": "zstd"}  # and how they are compressed
PARQUET_ENDINGS = (".parquet", ".pq")
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def is_csv(path: Path) -> bool:
    """Tell CSV from Parquet by the ending of a file's name. Raises ValueError where the ending is of neither."""
    name = path.name.lower()
    if name.endswith(tuple(CSV_ENDINGS)):
        return True
    if name.endswith(PARQUET_ENDINGS):
        return False
    expected = ", ".join((*PARQUET_ENDINGS, *CSV_ENDINGS))
    raise ValueError(f"{path}: expected a log whose name ends in one of {expected}")


def open_csv(path: Path):
    """Open a CSV file as a pyarrow.NativeFile of its uncompressed bytes."""
    name = path.name.lower()
    compression = next(kind for ending, kind in CSV_ENDINGS.items() if name.endswith(ending))
    return arrow().input_stream(str(path), compression=compression)


def column_names(path: Path) -> list[str]:
    """Read the names of a file's columns.

    Raises ValueError where a name comes twice, and where another sign than the comma separates the columns of a CSV
    file.
    """
    if is_csv(path):
        with open_csv(path) as file:
            line = _first_line(file).decode("utf-8-sig").rstrip("\r\n")
        names = [name.strip('"') for name in line.split(",")]  # spaces belong to a name, as in all readers of CSV
        found = next((word for sign, word in OTHER_SEPARATORS.items() if sign in names[0]), None)
        if len(names) == 1 and found:
            raise ValueError(
                f"{path}: row 1: expected columns separated by commas, got {found}: write the file with commas between "
                "columns, and with points in numbers"
            )
    else:
        names = arrow().parquet.read_schema(path).names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: column '{name}' comes twice")
    return names


def _first_line(file) -> bytes:
    """Read a file up to the end of its first line."""
    line = b""
    while chunk := file.read(1 << 12):
        line += chunk
        if b"\n" in chunk:
            break
    return line.partition(b"\n")[0]


def numbered_names(path: Path, names: list[str], prefix: str) -> list[str]:
    """Return prefix_0, prefix_1 … of a file's columns. Raises ValueError where one of the numbers is missing."""
    present = [name for name in names if name.startswith(f"{prefix}_") and name.removeprefix(f"{prefix}_").isdigit()]
    expected = [f"{prefix}_{k}" for k in range(len(present))]
    for name in expected:
        if name not in names:
            other = next(name for name in present if name not in expected)
            raise ValueError(f"{path}: no column '{name}', and there is '{other}': expected numbers without a gap")
    return expected


def action_sizes(path: Path, names: list[str]) -> tuple[int, ...]:
    """Return the sizes of the action's heads, by the columns valid_I_J …"""
    actions = [name.split("_")[1:] for name in names if name.startswith("valid_")]
    lengths = {len(choices) for choices in actions}
    all_numbers = all(choice.isdigit() for choices in actions for choice in choices)
    if len(lengths) != 1 or not all_numbers:
        raise ValueError(f"{path}: expected columns valid_0_0 …, one for each combination of an action's parts")
    nvec = []
    for choices_of_head in zip(*actions):
        largest = max(map(int, choices_of_head))
        nvec.append(largest + 1)
    return tuple(nvec)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def check_memory(path: Path, bytes_per_row: int) -> None:
    """Raise ValueError where the rows of a Parquet file, by its footer, take more memory than is free.

    A small file can hold many equal rows. A CSV file has no footer, and is as large as its rows.
    """
    free = free_memory()
    if is_csv(path) or free is None:
        return
    rows = arrow().parquet.ParquetFile(path).metadata.num_rows
    needed = rows * bytes_per_row
    if needed > free:
        raise ValueError(
            f"{path}: its {rows:,} rows take {needed / 2**30:,.1f} GiB of memory, {free / 2**30:,.1f} GiB are free: "
            "expected fewer rows"
        )


def free_memory() -> int | None:
    """Return the bytes of memory that this process may still take, None where the system does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()  # of a container
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, StopIteration, ValueError):
        pass
    return min(found, default=None)

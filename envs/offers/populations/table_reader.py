"""Read a CSV or Parquet file of customers into columns, with one-line errors that name file, row and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SPREAD = 3  # different numbers that a column needs before any can be far from the others
Columns = dict[str, np.ndarray]  # floats (NaN: no entry) or strings ("": none), all of one length


def read_table(path: str | None, separator: str, text: list[str], numbers: list[str], rows: str) -> Columns:
    """Return a file's columns; raise ValueError, with file, row and column, where it is no table.

    `rows` says what a row is, in messages.

    A column holds numbers where the file says so (Parquet) or where most of its entries are numbers, unless `text`
    names the column. Every entry of such a column, and of the columns `numbers`, must be a number. Line ends and a
    byte-order mark don't matter. Messages count rows from 1, the header's.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ValueError("env.population: table needs the package 'pandas': pip install -e '.[data]'") from error
    if not path:
        raise ValueError("env.population.path: expected the path of a CSV or Parquet file")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file (env.population.path)")
    try:
        if Path(path).suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(
                path,
                sep=separator,
                header=None,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,
            )
            frame = frame.set_axis(frame.iloc[0], axis=1).iloc[1:].reset_index(drop=True)
    except (ValueError, OSError, ImportError) as error:  # pandas' parser errors and bad UTF-8 are ValueErrors
        raise ValueError(f"{path}: can't be read as a table: {str(error).splitlines()[0]}") from error
    if not len(frame):
        raise ValueError(f"{path}: expected {rows}, got no row")
    frame.columns = [str(name).strip() for name in frame.columns]
    if "" in frame.columns:
        number = list(frame.columns).index("") + 1
        raise ValueError(
            f"{path}: row 1, column {number}: expected a name, got nothing (a separator too many, or an index?)"
        )
    double = frame.columns[frame.columns.duplicated()]
    if len(double):
        raise ValueError(f"{path}: column '{double[0]}' comes twice")
    return {name: _column(frame[name], path, name in text, name in numbers) for name in frame}


def _column(series, path: str, text: bool, number: bool) -> np.ndarray:
    import pandas as pd

    if not text and (pd.api.types.is_numeric_dtype(series) or pd.api.types.is_bool_dtype(series)):
        values = series.to_numpy(dtype=float, na_value=np.nan)
        return np.where(np.isfinite(values), values, np.nan)
    nested = series.map(lambda x: isinstance(x, (list, dict, np.ndarray)))
    if nested.any():
        row = int(nested.to_numpy().argmax()) + 2
        raise ValueError(f"{path}: row {row}, column '{series.name}': expected a number or text, got a list or mapping")
    # names of whole numbers and flags do not depend on the kind of file
    strings = series.astype(object).where(series.notna(), "").astype(str).str.strip()
    if text:
        return strings.to_numpy(dtype=object)
    filled = strings[strings != ""]
    values = pd.to_numeric(strings.where(strings != "", None), errors="coerce")
    values = values.where(np.isfinite(values.astype(float)))
    wrong = filled.index[values[filled.index].isna()]
    if len(wrong) and (number or len(wrong) < len(filled) / 2):
        hint = "" if number else " (a column of text is named in env.population.text)"
        row = strings.index.get_loc(wrong[0]) + 2
        raise ValueError(
            f"{path}: row {row}, column '{series.name}': expected a number, got '{filled[wrong[0]]}'{hint}"
        )
    if len(wrong) or (not len(filled) and not number):
        return strings.to_numpy(dtype=object)
    return values.to_numpy(dtype=float)


def describe_far_values(column: np.ndarray, gap: float) -> str:
    """Describe the numbers that lie further from all others than `gap` times the others' range; empty without any.

    They are the smaller part of the column [H] on one side of its widest gap, such as -999 for a missing number.
    """
    values, counts = np.unique(column, return_counts=True)
    if len(values) < SPREAD + 1:
        return ""
    widest = int(np.diff(values).argmax())
    is_above = np.arange(len(values)) > widest
    is_far = is_above if counts[is_above].sum() * 2 < len(column) else ~is_above
    others = values[~is_far]
    if len(others) < SPREAD or np.diff(values)[widest] <= gap * np.ptp(others):
        return ""
    far = values[is_far]
    shown = f"{far[0]:g}" if len(far) == 1 else f"{far[0]:g} to {far[-1]:g}"
    return f"{shown} ({counts[is_far].sum():,} times) is far from all others, {others[0]:g} to {others[-1]:g}"

"""What a column of a file holds: numbers, yes or no, dates or text, as numpy arrays."""

from __future__ import annotations

import numpy as np

from rlcore.offline.file_columns import arrow

Columns = dict[str, np.ndarray]  # floats (NaN: no entry), dates (NaT: none) or strings ("": none), all of one length

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]*(Z|[+-][0-9:]+)?)?$"
DAY = 10  # characters of a date


def is_number(column: np.ndarray) -> bool:
    """Tell whether a column holds numbers."""
    return column.dtype.kind == "f"


def is_date(column: np.ndarray) -> bool:
    """Tell whether a column holds dates."""
    return column.dtype.kind == "M"


def to_column(values, path: str, name: str, text: bool, number: bool, text_key: str) -> np.ndarray:
    """Turn a pyarrow.ChunkedArray [H] into floats, dates (datetime64[D]) or strings.

    A column of texts holds numbers or dates where most of its entries do, and yes or no (1 or 0) where all are `true`
    or `false`, unless `text` says that it is text. `number` says that it must hold numbers. Raises ValueError, with
    row and column, where an entry is of another kind, and where entries are lists or mappings; `text_key` is the key
    that names columns of text.
    """
    pa = arrow()
    types = pa.types
    kind = values.type
    if types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    if types.is_null(kind):
        values = values.cast(pa.string())
        kind = values.type
    if types.is_boolean(kind) and not text:
        return floats(values.cast(pa.int8()))
    if (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)) and not text:
        return floats(values)
    if types.is_date(kind) or types.is_timestamp(kind):
        if number:
            raise refusal(path, first_row(values.is_valid()), name, "a number", f"'{first_filled(values)}'")
        if not text:
            return days(values)
    if types.is_nested(kind) or types.is_binary(kind) or types.is_time(kind) or types.is_duration(kind):
        got = "a list or mapping" if types.is_nested(kind) else str(kind)
        raise refusal(path, first_row(values.is_valid()), name, "a number, a date or text", got)
    strings = trimmed(values)
    return to_text(strings) if text else parsed(strings, path, name, number, text_key)


# ── texts ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def trimmed(values):
    """Return values as texts without blanks around them; whole numbers have no point, whatever the kind of file."""
    pa = arrow()
    if pa.types.is_floating(values.type):
        try:
            values = values.cast(pa.int64())
        except pa.ArrowException:
            pass
    strings = pa.compute.fill_null(values.cast(pa.string()), "")
    return pa.compute.utf8_trim_whitespace(strings)


def to_text(strings) -> np.ndarray:
    """Return texts as an array of objects [H]; equal texts are one object."""
    pa = arrow()
    whole = strings.combine_chunks() if isinstance(strings, pa.ChunkedArray) else strings
    encoded = whole.dictionary_encode()
    distinct = np.array(encoded.dictionary.to_pylist() or [""], dtype=object)
    return distinct[encoded.indices.to_numpy()]


def parsed(strings, path: str, name: str, number: bool, text_key: str) -> np.ndarray:
    """Read texts as what most of them are: numbers, yes or no, dates, else text."""
    pa = arrow()
    pc = pa.compute
    filled = pc.not_equal(strings, "")
    count = pc.sum(filled).as_py() or 0
    if not count:
        return np.full(len(strings), np.nan) if number else to_text(strings)
    entries = pc.if_else(filled, strings, None)
    try:
        found = floats(entries.cast(pa.float64()))
        if np.isfinite(found).sum() == count:
            return found
    except pa.ArrowException:
        pass
    matches = pc.fill_null(pc.match_substring_regex(entries, NUMBER), False)
    numbers = pc.sum(matches).as_py()
    if numbers == count:
        found = floats(pc.utf8_ltrim(entries, "+").cast(pa.float64()))
        if np.isfinite(found).sum() == count:
            return found
        matches = pa.chunked_array([pa.array(np.isfinite(found))])
        numbers = pc.sum(matches).as_py()
    if number or numbers > count / 2:
        row = first_row(pc.and_(filled, pc.invert(matches)))
        hint = "" if number else f" (a column of text is named in {text_key})"
        raise refusal(path, row, name, "a number", f"'{strings[row].as_py()}'{hint}")
    lower = pc.utf8_lower(entries)
    if pc.all(pc.is_in(lower, pa.array(["true", "false"])).filter(filled)).as_py():
        return floats(pc.equal(lower, "true").cast(pa.int8()))
    matches = pc.fill_null(pc.match_substring_regex(entries, DATE), False)
    dates = pc.sum(matches).as_py()
    if dates <= count / 2:
        return to_text(strings)
    if dates == count:
        first_part = pc.utf8_slice_codeunits(entries, 0, DAY)
        try:
            return days(first_part.cast(pa.date32()))
        except pa.ArrowException:
            row = next(k for k, x in enumerate(first_part) if not is_day(x))
            raise refusal(path, row, name, "a date, year-month-day", f"'{strings[row].as_py()}'") from None
    row = first_row(pc.and_(filled, pc.invert(matches)))
    raise refusal(path, row, name, "a date, year-month-day", f"'{strings[row].as_py()}'")


def is_day(x) -> bool:
    """Tell whether a scalar is a day of the calendar, or empty."""
    pa = arrow()
    try:
        x.cast(pa.date32())
    except pa.ArrowException:
        return False
    return True


# ── arrays ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def floats(values) -> np.ndarray:
    """Return numbers as float64 [H]; what is no finite number becomes NaN."""
    column = values.cast(arrow().float64()).to_numpy()
    finite = np.isfinite(column)
    return column if finite.all() else np.where(finite, column, np.nan)


def days(values) -> np.ndarray:
    """Return dates as datetime64[D], [H], NaT where there is none."""
    pa = arrow()
    if pa.types.is_timestamp(values.type):
        values = pa.compute.floor_temporal(values, unit="day")
    return values.cast(pa.date32()).to_numpy().astype("datetime64[D]")


def first_row(wrong) -> int:
    """Return the first index at which a pyarrow array of truths is true."""
    return int(np.asarray(wrong).argmax())


def first_filled(values):
    """Return the first entry."""
    return values[first_row(values.is_valid())].as_py()


def refusal(path: str, row: int, name: str, expected: str, got: str) -> ValueError:
    """Return the error of an entry in row `row`, from 0."""
    return ValueError(f"{path}: row {row + 2}, column '{name}': expected {expected}, got {got}")

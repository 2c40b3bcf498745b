"""Arguments of a ledger's calls: whole numbers, texts, moments in time, and the key that stands for a customer."""

from __future__ import annotations

import hashlib
import operator
import secrets
from datetime import datetime, timedelta, timezone
from typing import Any

LARGEST = 2**62  # so that sums of two fit into the database's 64 bits
LONGEST = 1000  # characters of a text
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)


def whole_number(name: str, value: Any, largest: int = LARGEST) -> int:
    """Return a whole number from 0 as a plain int; integers of NumPy are welcome, booleans and floats are not."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or type(value).__name__ == "bool_" or not 0 <= number <= largest:
        raise ValueError(f"ledger: {name}: expected a whole number from 0 to {largest}, got {value!r}")
    return number


def text(name: str, value: Any) -> str:
    """Return a text of 1 to LONGEST characters that every database can hold."""
    if not isinstance(value, str):
        raise ValueError(f"ledger: {name}: expected a text, got {value!r}")
    if not 1 <= len(value) <= LONGEST:
        raise ValueError(f"ledger: {name}: expected 1 to {LONGEST} characters, got {len(value)}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"ledger: {name}: expected text without null characters or halves of pairs, got {value!r}")
    return value


def microseconds(name: str, value: Any) -> int:
    """Express a moment in microseconds since 1970; a plain number could be of any unit, so it is refused."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"ledger: {name}: expected a datetime with a time zone, got {value!r}")
    return (value - EPOCH) // MICROSECOND


def moment(since_1970: int) -> datetime:
    """Read microseconds since 1970."""
    return EPOCH + since_1970 * MICROSECOND


def new_salt() -> bytes:
    """Draw the salt of a customer."""
    return secrets.token_bytes(16)


def key_of(customer: str, salt: bytes) -> bytes:
    """Return the key of a customer. Without the salt it does not tell the customer, not even to who guesses right."""
    return hashlib.blake2b(customer.encode(), key=salt, digest_size=16).digest()

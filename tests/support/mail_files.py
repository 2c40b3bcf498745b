"""Invented mails with outcomes, and the CSV files that hold them."""

from __future__ import annotations

import csv
import io
import random

WORDS = (
    "apple river stone cloud paper window garden engine silver market pencil forest candle bridge winter signal "
    "basket copper meadow lantern harbour velvet thunder marble orchard compass feather granite ribbon saddle"
).split()


def made_up_text(rng, n=30):
    """Invent a text of n words, unlike any other."""
    return " ".join(rng.choices(WORDS, k=n)) + "."


def mail_rows(n=100, seed=0):
    """Invent n rows."""
    rng = random.Random(seed)
    return [[f"CTO number {i}", made_up_text(rng), str(rng.choices((0, 1, 2), (5, 3, 2))[0])] for i in range(n)]


def write_csv(path, lines, header=("context", "email_text", "outcome"), encoding="utf-8", end="\n", bom=False):
    """Write a CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows([header, *lines] if header else lines)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + out.getvalue().encode(encoding))
    return str(path)

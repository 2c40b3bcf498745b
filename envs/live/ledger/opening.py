"""Opens the ledger that an address names."""

from __future__ import annotations

from envs.live.ledger.protocol import Ledger
from envs.live.ledger.sqlite import SqliteLedger

SERVER = ("postgresql://", "postgres://")


def open_ledger(address: str, *, caller: str, timeout: float, sync: str) -> Ledger:
    """Open a file, or a schema of a PostgreSQL server: `postgresql://USER@HOST:PORT/DATABASE#NAME`.

    `sync` is of SQLite; a server has its own setting.
    """
    if not address.startswith(SERVER):
        return SqliteLedger(address, caller=caller, timeout=timeout, sync=sync)
    server, _, name = address.partition("#")
    try:
        from envs.live.ledger.postgres import PostgresLedger
    except ImportError as error:
        raise ValueError(f"{server}: a ledger in PostgreSQL needs psycopg: pip install 'crm-rl[postgres]'") from error
    return PostgresLedger(server, name=name or "ledger", caller=caller, timeout=timeout)

"""The money of every week on disk, for the system that sends: two stores of one protocol (protocol.py, docs/ledger.md).

SQLite needs the standard library alone (sqlite.py); PostgreSQL needs the extra `postgres` (postgres.py).
"""

"""Look after a ledger: back it up, audit it, print a week's journal, free lapsed money, erase a customer.

    python -m envs.live.ledger backup money.db copy.db
    python -m envs.live.ledger audit money.db
    python -m envs.live.ledger journal money.db SEASON WEEK
    python -m envs.live.ledger expire money.db
    python -m envs.live.ledger erase money.db CUSTOMER

Exit code 0: done; 2: bad input; 3 (audit): a week was overspent, or the books don't agree with the journal.
"""

from __future__ import annotations

import argparse
import csv
import getpass
import sys
from datetime import datetime, timezone
from pathlib import Path

from envs.live.ledger.opening import SERVER, open_ledger
from envs.live.ledger.protocol import Record
from envs.live.ledger.sqlite import SqliteLedger

TIMEOUT = 30.0  # seconds


def main(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m envs.live.ledger", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    help_of = {
        "backup": "copy a file, whole and of one moment, while others write",
        "audit": "add up the journal and compare",
        "journal": "print a week's records as CSV",
        "expire": "free the money of reservations whose offers have ended, and say of how many",
        "erase": "forget who a customer was",
    }
    for name, text in help_of.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("address", help="a file, or postgresql://USER@HOST:PORT/DATABASE#NAME")
    commands.choices["backup"].add_argument("copy", type=Path)
    commands.choices["journal"].add_argument("season", type=int)
    commands.choices["journal"].add_argument("week", type=int)
    commands.choices["erase"].add_argument("customer")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if not options.address.startswith(SERVER) and not Path(options.address).exists():
        raise ValueError(f"{options.address}: no such ledger")
    ledger = open_ledger(options.address, caller=getpass.getuser(), timeout=TIMEOUT, sync="full")
    try:
        if options.command == "backup":
            if not isinstance(ledger, SqliteLedger):
                raise ValueError(f"{options.address}: PostgreSQL has its own backups (pg_dump, pg_basebackup)")
            ledger.back_up(options.copy)
            print(options.copy)
        elif options.command == "audit":
            audit = ledger.audit()
            for name, figure in (*audit._asdict().items(), ("sound", audit.sound)):
                print(name, figure)
            return 3 if audit.overspent or not audit.sound else 0
        elif options.command == "journal":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(Record._fields)
            for record in ledger.journal(options.season, options.week):
                writer.writerow(value.hex() if isinstance(value, bytes) else value for value in record)
        elif options.command == "expire":
            print(ledger.expire(datetime.now(timezone.utc)))
        else:
            print("erased" if ledger.erase(options.customer) else "nobody of this name is known")
    finally:
        ledger.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The scripts as one command of the installed package: `crm-rl train …` is `python scripts/train.py …`."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

COMMANDS = (
    "train",
    "evaluate",
    "collect",
    "import_sends",
    "uplift",
    "export",
    "test_size",
    "plan",
    "write_email",
    "bench",
    "summary",
    "example_shop",
)


def main() -> None:
    """Run the script that the first argument names, with the other arguments."""
    command, *arguments = sys.argv[1:] or [""]
    if command in ("-h", "--help"):
        print(usage())
    elif command in COMMANDS:
        sys.argv[1:] = arguments
        runpy.run_module(f"scripts.{command}", run_name="__main__", alter_sys=True)
    else:
        print(f"error: crm-rl: expected {', '.join(COMMANDS)} or --help, got '{command}'", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """List the commands, each with the summary of its script."""
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {purpose(command)}" for command in COMMANDS]
    return "\n".join(["usage: crm-rl COMMAND [key=value …]", "", *lines])


def purpose(command: str) -> str:
    """Return the first line of a script's docstring, without importing the script."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()

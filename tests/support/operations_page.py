"""The commands of docs/operations.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def script_of_the_page() -> str:
    """Return weekly.sh."""
    (script,) = re.findall(r"```bash\n(#!.*?)```", PAGE, re.DOTALL)
    return script


def commands_under(heading: str) -> str:
    """Return the first block of commands under a heading."""
    _, _, text = PAGE.partition(f"# {heading}\n")
    return re.findall(r"^ *```bash\n(.*?)```", text, re.DOTALL | re.MULTILINE)[0]


def crontab_line(time: str, folder: Path) -> str:
    """Return the command that cron runs at a time, with the shop's folder in its place."""
    (line,) = re.findall(rf"^{re.escape(time)} +(.*)$", PAGE, re.MULTILINE)
    return line.replace(r"\%", "%").replace("/srv/crm-rl", str(folder))  # cron takes a bare % for a new line

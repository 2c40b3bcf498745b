"""The end of a sweep: the table on the console, and summary.csv, summary.md and learning_curves.png beside the jobs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlcore.runs import checkpoint
from rlcore.runs.plots import text_table
from rlcore.runs.run_logger import make_console
from scripts.sweeps.aggregate import header, rows, summarize, to_csv, to_markdown
from scripts.sweeps.curves import curves_figure
from scripts.sweeps.jobs import group, read_jobs

MAX_WIDTH = 10000  # characters of a table that no console bounds
# columns that are left out where the console is too narrow for all, the first ones first
SPARED = (("IQM", "IQM interval"), ("best", "its seed"), ("less the best row", "±"))


def fitting_table(
    console: Console, title: str, columns: list[str], lines: list[list[str]], choices: int, caption: str
) -> Table:
    """Lay out the table, without those of the SPARED columns for which the console has no room.

    Settings, seeds, mean and the other policies stay, of which the settings may break into lines.
    """
    boundless = console.options.update(max_width=MAX_WIDTH)
    shown, table = list(range(len(columns))), text_table(title, columns, lines, caption, left=choices)
    for spared in SPARED:
        if console.measure(table, options=boundless).maximum <= console.width:
            break
        first = columns.index(spared[0])
        shown = [k for k in shown if not first <= k < first + len(spared)]
        cells = [[line[k] for k in shown] for line in lines]
        said = f"{caption}; summary.md has more columns"
        table = text_table(title, [columns[k] for k in shown], cells, said, left=choices)
    return table


def summarize_sweep(
    folders: list[Path], out: Path, *, level: float, resamples: int, seed: int, beside: list[str]
) -> None:
    """Summarise the jobs in folders and below, print the table, and write the files into `out`.

    `level` is that of the intervals, `resamples` the bootstrap's samples, `seed` its random numbers'; `beside` names
    the policies that each get a column of their own.
    """
    jobs = read_jobs(folders, beside)
    settings = group(jobs)
    summaries = summarize(settings, level=level, resamples=resamples, seed=seed)
    better = "higher" if jobs[0].higher_is_better else "lower"
    caption = (
        f"±: half of Student's {level:.0%} interval of the mean over seeds; IQM: mean of the middle half, with its "
        f"bootstrap interval (too narrow for few seeds); {better} is better; "
        f"best: in hindsight, so it flatters{'; last columns: the mean of other policies' if beside else ''}"
    )
    title = f"{len(jobs)} jobs, {len(settings)} settings"
    choices = len(summaries[0].choices)
    console = make_console()
    console.print(fitting_table(console, title, header(summaries), rows(summaries), choices, caption))
    text = f"{to_markdown(summaries)}\n\n{caption}\n"
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.atomic(out / "summary.md", lambda path: path.write_text(text))
    checkpoint.atomic(out / "summary.csv", lambda path: path.write_text(to_csv(summaries)))
    written = ["summary.csv", "summary.md"]
    figure = curves_figure(settings, level)
    if figure:
        checkpoint.atomic(out / "learning_curves.png", partial(figure.savefig, format="png"))
        written.append("learning_curves.png")
    console.print(f"{out}/: {', '.join(written)}", highlight=False)

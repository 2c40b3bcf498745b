"""Sum up the jobs of sweeps: mean and interval over seeds, IQM, best; learning curves with bands.

Usage:

    python scripts/summary.py FOLDER… [--out FOLDER] [--beside POLICY]

FOLDER is that of a sweep, or of several runs. The table is printed, and summary.csv, summary.md and learning_curves.png
are written into the first FOLDER, or into --out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import OmegaConf

from envs.configuration import CONF
from scripts.sweeps.report import summarize_sweep


def main() -> None:
    """Summarise the folders of the command line; bad input ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="summary", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a sweep, or of runs")
    parser.add_argument("--out", type=Path, help="folder of the files; the first FOLDER if it is left out")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="POLICY", help="another policy of the runs, as a column"
    )
    arguments = parser.parse_args()
    options = OmegaConf.load(CONF / "hydra/callbacks/sweep_summary.yaml").sweep_summary
    try:
        summarize_sweep(
            arguments.folders,
            arguments.out or arguments.folders[0],
            level=options.level,
            resamples=options.resamples,
            seed=options.seed,
            beside=arguments.beside,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

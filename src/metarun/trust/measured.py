"""What the cells have given us: the table `docs/results/measured.csv`, which ships with the package.

Columns:
  cell                    its name, as in `experiment=PAPER/CELL`
  value, interval         in the unit of `result.json`, and half the width of the 95% interval over tasks
  tasks, seeds, steps     test tasks, how many seeds, outer steps
  minutes, device         of the whole command, and what it ran on
  versions, commit, date  of the libraries, where they are known; with which commit the figure came here, and when
  note                    what has to be known of it
A cell whose command is another's has no line of its own. An empty entry is not known.
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from metarun.config.experiments import run_of
from metarun.config.search_path import conf_dir


class Measured(NamedTuple):
    """What a cell has given us.

    Attributes:
      value, ci95: as of a published figure.
      tasks, seeds, steps: test tasks, seeds and outer steps.
      minutes: of the whole command.
      device: in words.
      versions, commit, date: of the libraries; with which commit the figure came, and when; "" for not known.
      note: what has to be known of it; "" for nothing.
    """

    value: float
    ci95: float
    tasks: int
    seeds: int
    steps: int
    minutes: float
    device: str
    versions: str
    commit: str
    date: str
    note: str


@cache
def table() -> dict[str, Measured]:
    """Name of a cell -> what it has given us."""
    with table_file().open(newline="", encoding="utf-8") as lines:
        return {line["cell"]: _measured(line) for line in csv.DictReader(lines)}


def measured(cell: str, part: str) -> Measured | None:
    """What a cell has given us, or that whose command it shares; None if it has not been run to its end.

    Args:
      cell: its name, PAPER/CELL.
      part: of `conf/`, where its file stands.
    """
    return table().get(run_of(conf_dir(part) / "experiment", cell))


def table_file() -> Path:
    """The table's file: in the installed package, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "results", package.parents[1] / "docs" / "results"):
        if (folder / "measured.csv").is_file():
            return folder / "measured.csv"
    raise FileNotFoundError(f"metarun's table of results is missing beside {package}: install the package again.")


def _measured(line: dict[str, str]) -> Measured:
    return Measured(
        value=float(line["value"]),
        ci95=float(line["interval"]),
        tasks=int(line["tasks"]),
        seeds=int(line["seeds"]),
        steps=int(line["steps"]),
        minutes=float(line["minutes"]),
        **{key: line[key] for key in ("device", "versions", "commit", "date", "note")},
    )

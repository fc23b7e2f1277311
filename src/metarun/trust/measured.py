"""What the cells have given us: the table `docs/results/measured.csv`, which ships with the package.

Columns:
  cell                    its name, as in `experiment=PAPER/CELL`
  value, interval         in the unit of `result.json`, and half the width of the 95% interval over tasks; of several seeds
                          their mean, and the widest of their intervals
  tasks, seeds, steps     test tasks, how many seeds, outer steps
  minutes, device         of the whole command, in which seeds train together, and what it ran on
  versions, commit, date  of the libraries, where they are known; with which commit the figure came here, and when
  note                    what has to be known of it
  result                  SHA-256 of the run's `result.json`, its first 16 digits; the file is `runs/PAPER/CELL.json` beside
                          the table. Of several seeds one after the other; the second's is `runs/PAPER/CELL.1.json`
  by_seed                 the values of several seeds, from the first on; empty for one
A cell whose command is another's has no line of its own. An empty entry is not known.
"""

import csv
import hashlib
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from metarun.config.experiments import run_of
from metarun.config.search_path import conf_dir
from metarun.errors import DataError
from metarun.system.files import write_bytes
from metarun.trust.equivalence import Ours, over_seeds


class Measured(NamedTuple):
    """What a cell has given us.

    Attributes:
      value, ci95: as of a published figure; of several seeds their mean, and the widest of their intervals over tasks.
      tasks, seeds, steps: test tasks, seeds and outer steps.
      minutes: of the whole command.
      device: in words.
      versions, commit, date: of the libraries; with which commit the figure came, and when; "" for not known.
      note: what has to be known of it; "" for nothing.
      result: hash of the run's `result.json`, as `hash_of` gives it, of each seed; "" where that is not kept.
      by_seed: the values of several seeds, from the first on, with spaces between; "" for one.
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
    result: str = ""
    by_seed: str = ""

    @property
    def ours(self) -> Ours:
        """What it is, to be held against a published figure."""
        return Ours([float(value) for value in self.by_seed.split()] or [self.value], self.ci95, self.tasks)

    @property
    def interval(self) -> float:
        """Half the width of the 95% interval over tasks, and over seeds where there are several."""
        return over_seeds(self.ours)[1]


@cache
def table() -> dict[str, Measured]:
    """Name of a cell -> what it has given us."""
    return read(table_file())


def read(file: Path) -> dict[str, Measured]:
    """Name of a cell -> what it has given, of any table of this form.

    Raises:
      DataError: a line of it does not fit.
    """
    found = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for number, line in enumerate(csv.DictReader(lines), 2):
            try:
                found[line["cell"]] = _measured(line)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file}, line {number} is no row of a table of results: {error!r}.") from None
    return found


def write(file: Path, rows: Mapping[str, Measured]) -> None:
    """Replaces a table, at once: a reader sees the old one or the whole new one. Cells are in the order of their names.

    Raises:
      MetarunError: it cannot be written; the old one is untouched.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["cell", *("interval" if name == "ci95" else name for name in Measured._fields)])
    for cell, row in sorted(rows.items()):
        lines.writerow([cell, f"{row.value:.4g}", f"{row.ci95:.3g}", *row[2:5], f"{row.minutes:g}", *row[6:]])
    write_bytes(file, text.getvalue().encode())


def hash_of(result: bytes) -> str:
    """How the table names a `result.json`, given what is in it."""
    return hashlib.sha256(result).hexdigest()[:16]


def kept_as(cell: str, seed: int) -> str:
    """Where the `result.json` of a cell's seed is kept, from the table's folder."""
    return f"runs/{cell}.json" if seed == 0 else f"runs/{cell}.{seed}.json"


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
    row = Measured(
        value=float(line["value"]),
        ci95=float(line["interval"]),
        tasks=int(line["tasks"]),
        seeds=int(line["seeds"]),
        steps=int(line["steps"]),
        minutes=float(line["minutes"]),
        **{key: line[key] for key in ("device", "versions", "commit", "date", "note", "result")},
        by_seed=line.get("by_seed") or "",
    )
    if row.by_seed and len(row.ours.values) != row.seeds:
        raise ValueError(f"by_seed={row.by_seed}: expected {row.seeds} values")
    return row

"""How far a sweep is, in one table: on a terminal it is drawn anew each second; elsewhere each change of it is a line.

What is shown is what the points leave in their directories, and what their launcher has been told of them. So it is the same
for points in this process, in others of this machine, and in jobs of a cluster.
"""

import contextlib
import copy
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from omegaconf import OmegaConf, open_dict, read_write
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metarun.commands.sweep import DRAWN, PointOutcome, Points
from metarun.config.directories import HYDRA
from metarun.errors import DataError
from metarun.training.result import METRICS, RESULT, read_divergence, read_metrics, read_pruned, read_result

_SECONDS = 1.0  # between two looks
_ROWS = 12  # points that are shown; those that run, and then those that ended last
RUNNING, WAITING = "running", "waiting"
_ENDED = ("done", "diverged", "pruned", "failed")
_HIGHER_IS_BETTER = ("accuracy", "reward")  # other metrics are errors


class Row(NamedTuple):
    """A point as the table has it.

    Attributes:
      number: of the point.
      settings: in which it differs.
      state: "done", "running", "waiting", "diverged", "pruned" or "failed".
      step: that it has reached; None where it says none.
      val: its best validation so far; None where there is none.
    """

    number: int
    settings: str
    state: str
    step: int | None = None
    val: float | None = None


class _Watch:
    """What is known of the points of a sweep, by their numbers.

    Args:
      points: around the launcher.
      directory: of the sweep.
      total: how many points there will be; None: as many as are launched.
    """

    def __init__(self, points: Points, directory: Path, total: int | None):
        self._config: Any = copy.deepcopy(getattr(points.within, "config", None))
        self._directory, self._total, self._began = directory, total, time.time()
        self._settings: dict[int, Sequence[str]] = {}
        self._ended: dict[int, Row] = {}
        points.on_launch, points.on_outcome = self._launched, self._outcome
        self._best: Callable[..., Any] = max

    def _launched(self, first: int, overrides: Sequence[Sequence[str]]) -> None:
        self._settings |= {number: list(filter_overrides(own)) for number, own in enumerate(overrides, first)}

    def _outcome(self, number: int, outcome: PointOutcome) -> None:
        if outcome.error is not None:
            name = type(outcome.error).__name__.lower()
            state = name if name in ("diverged", "pruned") else "failed"
            step = getattr(outcome.error, "step", None)
            self._ended[number] = Row(number, "", state, step, getattr(outcome.error, "value", None))

    def failed(self, number: int) -> None:
        """That a point has ended with an error in this process, before its launcher has returned."""
        self._ended.setdefault(number, Row(number, "", "failed"))

    def rows(self) -> list[Row]:
        """The points that were launched, in order of their numbers."""
        settings = dict(self._settings)
        common = set.intersection(*map(set, settings.values())) if len(settings) > 1 else set()
        found = []
        for number in sorted(settings):
            row = self._row(number)
            own = " ".join(each for each in settings[number] if each not in common)
            found.append(row._replace(settings=own))
        return found

    def _row(self, number: int) -> Row:
        directory = self._directory_of(number)
        with contextlib.suppress(DataError, OSError):
            if pruned := read_pruned(directory):
                return Row(number, "", "pruned", pruned["step"], pruned["value"])
            if number in self._ended and self._ended[number].state != "failed":
                return self._ended[number]
            if diverged := read_divergence(directory):
                return Row(number, "", "diverged", diverged["step"])
            if number in self._ended:
                return self._ended[number]
            if (directory / RESULT).exists():
                result = read_result(directory / RESULT)
                self._goes_by(result["metric"])
                self._ended[number] = Row(number, "", "done", result.get("steps"), result.get("val"))
                return self._ended[number]
            begun = [path.stat().st_mtime for path in (directory, directory / HYDRA) if path.exists()]
            if max(begun, default=0.0) >= self._began - 1:
                return Row(number, "", RUNNING, *self._reached(directory))
        return self._ended.get(number, Row(number, "", WAITING))

    def _reached(self, directory: Path) -> tuple[int | None, float | None]:
        records, _ = read_metrics(directory / METRICS) if (directory / METRICS).exists() else ({}, [])
        vals = []
        for record in records.values():
            for name, value in record.items():
                if name.startswith("val/") and name != "val/ci95" and value is not None:
                    self._goes_by(name.removeprefix("val/"))
                    vals.append(value)
        return max(records, default=None), self._best(vals, default=None)

    def _goes_by(self, metric: str) -> None:
        self._best = max if metric in _HIGHER_IS_BETTER else min

    def _directory_of(self, number: int) -> Path:
        if self._config is None:
            return self._directory / str(number)
        job = self._config.hydra.job
        with read_write(job), open_dict(job):
            job.num, job.id = number, str(number)
        return self._directory / str(OmegaConf.select(self._config, "hydra.sweep.subdir"))

    def counts(self, rows: Sequence[Row]) -> str:
        """All points in a line: how many are done, run and failed, and the best validation."""
        total = max(self._total or 0, len(rows))
        states = [row.state for row in rows]
        words = [f"{states.count('done')} of {total} points done", f"{states.count(RUNNING)} running"]
        words += [f"{states.count('failed')} failed"]
        words += [f"{states.count(state)} {state}" for state in ("diverged", "pruned") if state in states]
        ended = [row for row in rows if row.state == "done" and row.val is not None]
        if ended:
            best = self._best(ended, key=lambda row: row.val)
            words.append(f"best validation {best.val:.4g} (point {best.number})")
        return ", ".join(words)

    def table(self) -> Group:
        """The counts, and the points that run and that ended last."""
        rows = self.rows()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("point", "settings", "state", "step", "validation"):
            table.add_column(column, justify="right" if column in ("step", "validation") else "left")
        running = [row for row in rows if row.state == RUNNING]
        ended = [row for row in rows if row.state in _ENDED]
        waiting = [row for row in rows if row.state == WAITING]
        shown = [*running, *ended[::-1], *waiting][:_ROWS]
        for row in sorted(shown):
            step = "" if row.step is None else str(row.step)
            table.add_row(
                str(row.number), Text(row.settings), row.state, step, "" if row.val is None else f"{row.val:.4g}"
            )
        if len(rows) > len(shown):
            table.add_row("…", f"{len(rows) - len(shown)} more", "", "", "")
        return Group(table, Text(self.counts(rows), "bold"))


@contextlib.contextmanager
def watched(points: Points, directory: Path, total: int | None = None) -> Iterator[None]:
    """Shows how far the points of a sweep are while the body, a sweeper's work, runs.

    Args:
      points: around the launcher.
      directory: of the sweep.
      total: how many points there will be; None: as many as are launched at once.
    """
    watch, console = _Watch(points, directory, total), Console(stderr=True)
    with _failures_noted(points.within, watch.failed):
        if console.is_terminal and not console.is_dumb_terminal:
            os.environ[DRAWN] = "1"
            try:
                with Live(get_renderable=watch.table, console=console, refresh_per_second=1 / _SECONDS):
                    yield
            finally:
                del os.environ[DRAWN]
            return
        over = threading.Event()
        thread = threading.Thread(target=_told_in_lines, args=(watch, console, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _told_in_lines(watch: _Watch, console: Console, over: threading.Event) -> None:
    said = None
    while True:
        last = over.wait(_SECONDS)
        rows = watch.rows()
        ended = [row.state in _ENDED for row in rows].count(True)
        if ended and ended != said:
            said = ended
            console.print(f"sweep: {watch.counts(rows)}", markup=False, highlight=False, soft_wrap=True)
        if last:
            return


@contextlib.contextmanager
def _failures_noted(launcher: Any, failed: Callable[[int], None]) -> Iterator[None]:
    """Has the points that a launcher runs in this process tell of their errors at once."""
    task = getattr(launcher, "task_function", None)
    if task is None or type(launcher).__module__ not in _IN_PROCESS:
        yield
        return

    def noted(config: Any) -> Any:
        try:
            return task(config)
        except Exception:
            failed(HydraConfig.get().job.num)
            raise

    launcher.task_function = noted
    try:
        yield
    finally:
        launcher.task_function = task


# The modules of the launchers that do.
_IN_PROCESS = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.metarun_together")

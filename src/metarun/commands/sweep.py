"""A sweep as a whole: its points trained together, and in the end what came of each of them.

What a sweep consists of is what its sweeper has launched, and nothing else that may lie in its directory.
"""

import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarun.config.directories import SWEEP_DONE, SWEEP_OTHERS, SWEEP_SEEDS
from metarun.config.named_code import additions_end_nothing
from metarun.errors import Diverged, MetarunError, Pruned, shown
from metarun.system.files import write_json, writing
from metarun.training.result import RESULT, read_result
from metarun.trust.equivalence import Ours, interval_said, over_seeds

# Set in this process, and so in those that it starts, while a table of the sweep is drawn on the terminal that they share.
DRAWN = "METARUN_TABLE"
FINISHED, DIVERGED, PRUNED, FAILED = "finished", "diverged", "pruned", "failed"
_MISTAKES = (MetarunError, HydraException, OmegaConfBaseException)
_UNFINISHED = 1  # exit code of a sweep with points that have no result


class Point(NamedTuple):
    """A point of a sweep that has been made, and not begun.

    Attributes:
      run: a `run_parts.Run`.
      directory: where it is to be.
      report: what draws its pictures.
      record: writes into the directory how it was made.
      judge: of a trial of a search, see `runner.run`.
    """

    run: Any
    directory: Path
    report: ModuleType
    record: Callable[[], None]
    judge: Callable[[int, float], bool] | None = None


class PointOutcome(NamedTuple):
    """What has come of a point that a sweeper has launched.

    Attributes:
      directory: of the run.
      overrides: the settings that it was given.
      error: what ended it; None where it has a result.
      value: what it returned: the best validation; None where it has no result.
    """

    directory: Path
    overrides: Sequence[str]
    error: Exception | None
    value: Any = None


class Points(Launcher):
    """A launcher around that of a sweep, which keeps what came of each point, so that no point costs the others theirs.

    Args:
      launcher: the one that was chosen, set up.
    """

    def __init__(self, launcher: Launcher):
        self.within = launcher
        # Called with the number of the first of the points that begin and with their settings, and with what ended points.
        self.on_launch: Callable[[int, Sequence[Sequence[str]]], None] = lambda first, overrides: None
        self.on_outcome: Callable[[int, PointOutcome], None] = lambda number, outcome: None
        self._by_number: dict[int, PointOutcome] = {}

    @property
    def outcomes(self) -> list[PointOutcome]:
        """Of the points that have ended, in order of their numbers."""
        return [self._by_number[number] for number in sorted(self._by_number)]

    def setup(self, **_: Any) -> None:
        """Nothing: the launcher within has been."""

    def launched(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[PointOutcome]:
        """Launches points, the first of which has the number `first`; returns when all have ended. Threads may call it."""
        self.on_launch(first, job_overrides)
        returns: Sequence[Any] = self.within.launch(job_overrides, initial_job_idx=first)
        outcomes = [
            PointOutcome(Path(point.hydra_cfg.hydra.runtime.output_dir), list(point.overrides), *_ended(point))
            for point in returns
        ]
        for number, outcome in enumerate(outcomes, first):
            self._by_number[number] = outcome
            self.on_outcome(number, outcome)
        return outcomes

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """As Hydra's sweeper calls it: a point without a result is one that returns nothing, so that it says nothing of it."""
        return [_returned(outcome.value) for outcome in self.launched(job_overrides, initial_job_idx)]


def _returned(value: Any) -> JobReturn:
    point = JobReturn()
    point.status, point.return_value = JobStatus.COMPLETED, value
    return point


def _ended(point: JobReturn) -> tuple[Exception | None, Any]:
    value: Any = point._return_value
    return (None, value) if point.status == JobStatus.COMPLETED else (value, None)


def is_refused(outcome: PointOutcome) -> bool:
    """Whether what ended a point is a mistake of the user's in its settings, before it has begun."""
    return isinstance(outcome.error, _MISTAKES) and not isinstance(outcome.error, (Diverged, Pruned))


@contextmanager
def told(
    points: Points, directory: Path, *, search: bool, closing: Callable[[Callable[[str], None]], None] | None = None
) -> Iterator[None]:
    """Whatever the body, a sweeper's work, ends in: writes and prints what came of the points that it has launched.

    Args:
      points: around the launcher.
      directory: of the sweep.
      search: whether points that were pruned or have diverged are a part of the work, as long as there are others.
      closing: called after the table with what prints a line, for what else there is to be said.

    Raises:
      SystemExit: points have no result, and it is said which; code 1.
      Exception: the first error of a point where all were refused, as a single run's, and then nothing is written; or
        where it is no mistake of the user's.
    """
    stopped: Exception | None = None
    try:
        yield
    except Exception as raised:
        stopped = raised
    outcomes = points.outcomes
    if not outcomes or all(is_refused(outcome) for outcome in outcomes):
        first = stopped or (outcomes[0].error if outcomes else None)
        if first is not None:
            raise first
        return
    found = rows(directory, outcomes)
    without = [row for row in found if row["outcome"] != FINISHED]
    write_json(directory / SWEEP_DONE, found)
    console = Console()
    console.print(table_of(found))
    distribution = distribution_of(directory, found)
    if distribution is not None:
        write_json(directory / SWEEP_SEEDS, distribution)
        console.print(_in_words(distribution), highlight=False, soft_wrap=True)
    else:
        _remove(directory / SWEEP_SEEDS)  # of an earlier command
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"{SWEEP_DONE} and a directory for each point in {directory}")
    if not search:  # whose points have numbers that no other command gives
        _tell_others(directory, outcomes, say)
    if closing is not None:
        closing(say)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if stopped is not None and not any(stopped is error for error in errors):
        raise stopped
    for error in errors:
        if not isinstance(error, _MISTAKES):
            raise error
    some_found = search and len(without) < len(found) and all(row["outcome"] in (DIVERGED, PRUNED) for row in without)
    if without and not some_found:
        which = "".join(f"\n  {row['point']}: {row['reason']}" for row in without)
        words = f"metarun: {len(without)} of {len(outcomes)} points have no result.{which}"
        Console(stderr=True).print(words, markup=False, highlight=False, soft_wrap=True)
        sys.exit(_UNFINISHED)


def _remove(path: Path) -> None:
    with writing(path):
        path.unlink(missing_ok=True)


def _tell_others(directory: Path, outcomes: Sequence[PointOutcome], say: Callable[[str], None]) -> None:
    """Says, and writes down for reports, which directories of runs in that of the sweep are no points of it."""
    own = {outcome.directory.resolve() for outcome in outcomes}
    runs = (file.parent.parent for file in sorted(directory.rglob(".hydra/config.yaml")))
    others = [str(run.relative_to(directory)) for run in runs if run.resolve() not in own]
    if not others:
        return _remove(directory / SWEEP_OTHERS)
    write_json(directory / SWEEP_OTHERS, others)
    say(f"Of another command, and so not counted: {', '.join(map(shown, others))} in {directory}")


def train_together(made: Sequence[Point]) -> list[float | None | Exception]:
    """Trains the points of a sweep, each in its directory: those that differ in numbers alone by one program.

    Points that differ in more are trained in groups, one after the other.

    Returns:
      The best validation of each, or the error that has ended it, which costs the others nothing.

    Raises:
      Interrupted, MetarunError: as `lockstep.train`.
    """
    from metarun.compiled import lockstep

    say = partial(Console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)
    found: dict[int, Any] = {}

    def train(numbers: Sequence[int]) -> None:
        points = [made[number] for number in numbers]
        try:
            found.update(zip(numbers, _train_group(points), strict=True))
            return
        except lockstep.Apart as error:
            why = str(error)
        parts = lockstep.groups([point.run.experiment for point in points])
        if len(parts) == 1:  # alike at first sight, and yet not in what is compiled
            parts = [[place] for place in parts[0]]
        alone = [points[part[0]].directory.name for part in parts if len(part) == 1]
        if len(alone) == len(points):
            say(f"hydra/launcher=together gains nothing: no two of {len(points)} points have one program ({why}).")
        else:
            names = "; ".join(" ".join(points[place].directory.name for place in part) for part in parts)
            say(f"{len(points)} points in {len(parts)} groups, one after the other: {names} ({why}).")
            if alone:
                say(f"hydra/launcher=together gains nothing for a group of one: {', '.join(alone)}.")
        for part in parts:
            train([numbers[place] for place in part])

    train(range(len(made)))
    return [found[number] for number in range(len(made))]


def _train_group(made: Sequence[Point]) -> list[float | None | Exception]:
    """As `train_together` of points that have one program; says what the checks of each have found."""
    from metarun.api.training import carried_out
    from metarun.compiled import lockstep
    from metarun.training.stopping import Stop, stop_on_signals

    (console, aside), quiet = consoles("together"), Console(quiet=True)
    results: dict[int, Any] = {}
    with stop_on_signals(made[0].run.settings.time_limit) as stop:
        stop.followers += [Stop() for _ in made]

        def drive(number: int, experiment: Any) -> float | None:
            point = made[number]
            with additions_end_nothing():
                results[number] = carried_out(
                    point.run,
                    point.directory,
                    point.report,
                    record=point.record,
                    console=quiet if number else aside,  # they go in step: the first speaks for all
                    experiment=experiment,
                    stop=stop.followers[number],
                    judge=point.judge,
                )
            return results[number]["val"]

        if len(made) > 1:
            ended = lockstep.train([point.run.experiment for point in made], drive)
        else:
            try:
                ended = [drive(0, made[0].run.experiment)]
            except Exception as error:
                ended = [error]
    for number in sorted(results):
        console.print(made[number].report.summary(results[number]))
        where = made[number].directory
        console.print(f"result.json and plots/ in {where}", markup=False, highlight=False, soft_wrap=True)
    return ended


def consoles(launcher: str) -> tuple[Console, Console]:
    """Where a point of a sweep says what it is and has found, and how far it is: nowhere where a table says so.

    Args:
      launcher: the choice of `hydra/launcher`.
    """
    aside = Console(stderr=True)
    if DRAWN not in os.environ or not aside.is_terminal:
        return Console(), aside
    quiet = Console(quiet=True)
    return (Console() if launcher in ("basic", "together") else quiet), quiet


def rows(directory: Path, outcomes: Sequence[PointOutcome]) -> list[dict[str, Any]]:
    """Returns what became of a sweep's points, in the order in which they were launched.

    Args:
      directory: of the sweep.
      outcomes: of its points.

    Returns:
      A list of `{point, overrides, metric, value, ci95, val, outcome, step, reason}`: the name of its directory, the
      settings that it was given, and of `result.json` what was found; `outcome` is "finished", "diverged", "pruned" or "failed".
      What it is of a point without a result is None, and then `reason` says why; `step` is that at which it diverged or was
      pruned.
    """
    found = []
    for outcome in outcomes:
        result, error = {}, outcome.error
        if error is None:
            try:
                result = read_result(outcome.directory / RESULT)
            except MetarunError as unreadable:
                error = unreadable
        found.append(
            {
                "point": _name(outcome.directory, directory),
                "overrides": list(outcome.overrides),
                **{key: result.get(key) for key in ("metric", "value", "ci95", "val")},
                "outcome": _outcome(error),
                "step": error.step if isinstance(error, (Diverged, Pruned)) else None,
                "reason": None if error is None else (str(error).splitlines() or [type(error).__name__])[0],
            }
        )
    return found


def _outcome(error: Exception | None) -> str:
    if error is None:
        return FINISHED
    return DIVERGED if isinstance(error, Diverged) else PRUNED if isinstance(error, Pruned) else FAILED


def _name(point: Path, directory: Path) -> str:
    point, directory = point.resolve(), directory.resolve()
    return str(point.relative_to(directory) if point.is_relative_to(directory) else point)


def distribution_of(directory: Path, found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How the results of points are distributed that differ in their seeds alone; None where there are no such.

    Args:
      directory: of the sweep.
      found: from `rows`.

    Returns:
      `value`, the mean over seeds; `ci95`, half the width of its 95% interval over tasks and seeds; `sd`, the standard
      deviation over seeds; `values` by `seeds`; and metric, num_tasks and protocol_id, which they share.
    """
    others = [{each for each in point["overrides"] if not each.startswith("seed=")} for point in found]
    if len(found) < 2 or any(other != others[0] for other in others) or any(point["value"] is None for point in found):
        return None
    results = [read_result(directory / point["point"] / RESULT) for point in found]
    shared = {key: results[0][key] for key in ("metric", "num_tasks", "protocol_id")}
    if any(result[key] != value for result in results for key, value in shared.items()):
        return None
    values = [result["value"] for result in results]
    of_tasks = [math.nan if result["ci95"] is None else result["ci95"] for result in results]
    value, ci95 = over_seeds(Ours(values, max(of_tasks), shared["num_tasks"]))
    seeds = [result["seed"] for result in results]
    sd = statistics.stdev(values)
    return {**shared, "value": value, "ci95": ci95, "sd": sd, "seeds": seeds, "values": values}


def _in_words(distribution: dict[str, Any]) -> str:
    scale, unit = (100, "%") if distribution["metric"] == "accuracy" else (1, "")
    interval, over = interval_said(distribution["ci95"], ".4g", scale, unit), "95% interval over seeds and "
    if not interval:
        over = "without an interval, on "
    value, sd, low, high = (
        f"{scale * number:.4g}{unit}"
        for number in (
            *(distribution[key] for key in ("value", "sd")),
            *(pick(distribution["values"]) for pick in (min, max)),
        )
    )
    tasks = f"{distribution['num_tasks']} task{'s' * (distribution['num_tasks'] > 1)}"
    return (
        f"{len(distribution['seeds'])} seeds: {distribution['metric']} {value}{interval}, {over}{tasks}; standard deviation "
        f"over seeds {sd}, from {low} to {high}"
    )


def table_of(found: Sequence[dict[str, Any]]) -> Table:
    """The points of a sweep, a row each, with the settings in which they differ."""
    common = set.intersection(*(set(point["overrides"]) for point in found)) if len(found) > 1 else set()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("point", "settings", "validation", "test"):
        table.add_column(column, justify="right" if column in ("validation", "test") else "left")
    for point in found:
        own = " ".join(override for override in point["overrides"] if override not in common)
        scale, unit = (100, "%") if point["metric"] == "accuracy" else (1, "")
        val, value = (None if x is None else f"{scale * x:.4g}{unit}" for x in (point["val"], point["value"]))
        said = f"{value or 'not finite'}{interval_said(point['ci95'], '.4g', scale, unit)}"
        if point["outcome"] in (DIVERGED, PRUNED):
            said = f"{point['outcome']} at step {point['step']}"
        elif point["outcome"] == FAILED:
            said = f"failed: {point['reason']}"
        table.add_row(Text(point["point"]), Text(own), val or "", Text(said))
    return table

"""A sweep as a whole: its points trained together, and in the end what came of each of them.

What a sweep consists of is what its sweeper has launched, and nothing else that may lie in its directory.
"""

import math
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
from metarun.errors import Diverged, MetarunError, shown
from metarun.system.files import write_json, writing
from metarun.training.result import RESULT, read_result
from metarun.trust.equivalence import Ours, interval_said, over_seeds

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"
_MISTAKES = (MetarunError, HydraException, OmegaConfBaseException)
_UNFINISHED = 1  # exit code of a sweep with points that have no result


class Point(NamedTuple):
    """A point of a sweep that has been made, and not begun.

    Attributes:
      run: a `run_parts.Run`.
      directory: where it is to be.
      report: what draws its pictures.
      record: writes into the directory how it was made.
    """

    run: Any
    directory: Path
    report: ModuleType
    record: Callable[[], None]


class PointOutcome(NamedTuple):
    """What has come of a point that a sweeper has launched.

    Attributes:
      directory: of the run.
      overrides: the settings that it was given.
      error: what ended it; None where it has a result.
    """

    directory: Path
    overrides: Sequence[str]
    error: Exception | None


class Points(Launcher):
    """A launcher around that of a sweep, which keeps what came of each point, so that no point costs the others theirs.

    Args:
      launcher: the one that was chosen, set up.
      failures: how a sweeper wants points without a result: False for as points that return nothing; True for as points
        that raise, which a search counts.
    """

    def __init__(self, launcher: Launcher, *, failures: bool):
        self._launcher, self._failures = launcher, failures
        self.outcomes: list[PointOutcome] = []

    def setup(self, **_: Any) -> None:
        """Nothing: the launcher within has been."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returns: Sequence[Any] = self._launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        before = len(self.outcomes)
        self.outcomes += [
            PointOutcome(Path(point.hydra_cfg.hydra.runtime.output_dir), list(point.overrides), _error_of(point))
            for point in returns
        ]
        first = self.outcomes[0].error if self.outcomes else None
        if first is not None and self._failures and not before and all(map(_is_refused, self.outcomes)):
            raise first  # the first trials are all refused: the mistake is the search's
        return [
            point if outcome.error is None else _without_result(outcome.error if self._failures else None)
            for point, outcome in zip(returns, self.outcomes[before:], strict=True)
        ]


class _Failed(JobReturn):
    """A point that raises, without a line of Hydra's, to whoever asks for its return value."""

    @property  # type: ignore[misc]  # Hydra's can be set as well
    def return_value(self) -> Any:
        raise self._return_value


def _without_result(error: Exception | None) -> JobReturn:
    point = JobReturn() if error is None else _Failed()
    point.status, point._return_value = JobStatus.COMPLETED, error
    return point


def _error_of(point: JobReturn) -> Exception | None:
    return None if point.status == JobStatus.COMPLETED else point._return_value


def _is_refused(outcome: PointOutcome) -> bool:
    return isinstance(outcome.error, _MISTAKES) and not isinstance(outcome.error, Diverged)


@contextmanager
def told(points: Points, directory: Path, *, search: bool) -> Iterator[None]:
    """Whatever the body, a sweeper's work, ends in: writes and prints what came of the points that it has launched.

    Args:
      points: around the launcher.
      directory: of the sweep.
      search: whether points without a result are a part of the work, as long as there are others.

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
    if not outcomes or all(_is_refused(outcome) for outcome in outcomes):
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
    _tell_others(directory, outcomes, say)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    nothing_found = search and len(without) == len(outcomes) and isinstance(stopped, ValueError)  # which Optuna says so
    if stopped is not None and not nothing_found and not any(stopped is error for error in errors):
        raise stopped
    for error in errors:
        if not isinstance(error, _MISTAKES):
            raise error
    some_found = search and len(without) < len(found) and all(row["outcome"] == DIVERGED for row in without)
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


def train_in_lockstep(made: Sequence[Point]) -> list[float | None | Exception]:
    """Trains the points of a sweep by one program, each in its directory.

    Returns:
      The best validation of each, or the error that has ended it, which costs the others nothing.

    Raises:
      ConfigError: they differ in more than numbers.
      Interrupted, MetarunError: as `lockstep.train`.
    """
    from metarun.api.training import carried_out
    from metarun.compiled import lockstep
    from metarun.training.stopping import Stop, stop_on_signals

    console, quiet = Console(stderr=True), Console(quiet=True)
    with stop_on_signals(made[0].run.settings.time_limit) as stop:
        stop.followers += [Stop() for _ in made]

        def drive(number: int, experiment: Any) -> float | None:
            run, directory, report, record = made[number]
            result = carried_out(
                run,
                directory,
                report,
                record=record,
                console=quiet if number else console,  # they go in step: the first speaks for all
                experiment=experiment,
                stop=stop.followers[number],
            )
            return result["val"]

        return lockstep.train([point.run.experiment for point in made], drive)


def rows(directory: Path, outcomes: Sequence[PointOutcome]) -> list[dict[str, Any]]:
    """Returns what became of a sweep's points, in the order in which they were launched.

    Args:
      directory: of the sweep.
      outcomes: of its points.

    Returns:
      A list of `{point, overrides, metric, value, ci95, val, outcome, step, reason}`: the name of its directory, the
      settings that it was given, and of `result.json` what was found; `outcome` is "finished", "diverged" or "failed".
      What it is of a point without a result is None, and then `reason` says why; `step` is that of a divergence.
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
                "outcome": FINISHED if error is None else DIVERGED if isinstance(error, Diverged) else FAILED,
                "step": error.step if isinstance(error, Diverged) else None,
                "reason": None if error is None else (str(error).splitlines() or [type(error).__name__])[0],
            }
        )
    return found


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
        if point["outcome"] == DIVERGED:
            said = f"diverged at step {point['step']}"
        elif point["outcome"] == FAILED:
            said = f"failed: {point['reason']}"
        table.add_row(Text(point["point"]), Text(own), val or "", Text(said))
    return table

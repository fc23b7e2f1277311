"""A sweep as a whole: its points trained together, and in the end what came of each of them."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarun.config import SWEEP_DONE, SWEEP_SEEDS
from metarun.equivalence import Ours, over_seeds
from metarun.files import write_json


class Outcome(Callback):
    """Once all points of a sweep have ended well, writes `sweep.json` into its directory and prints it as a table."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        found = points(directory)
        write_json(directory / SWEEP_DONE, found)
        console = Console()
        console.print(table_of(found))
        if (distribution := distribution_of(directory, found)) is not None:
            write_json(directory / SWEEP_SEEDS, distribution)
            console.print(_in_words(distribution), highlight=False, soft_wrap=True)
        console.print(f"{SWEEP_DONE} and a directory for each point in {directory}", highlight=False, soft_wrap=True)


class Point(NamedTuple):
    """A point of a sweep that has been made, and not begun.

    Attributes:
      run: a `composition.Run`.
      directory: where it is to be.
      report: what draws its pictures.
      record: writes into the directory how it was made.
    """

    run: Any
    directory: Path
    report: ModuleType
    record: Callable[[], None]


def train_together(made: Sequence[Point]) -> list[float | None]:
    """Trains the points of a sweep by one program, each in its directory, and returns their best validations.

    Raises:
      ConfigError: they differ in more than numbers.
      Interrupted, MetarunError: as `runner.run`.
    """
    from metarun import runner, together

    console, quiet = Console(stderr=True), Console(quiet=True)
    with runner.stop_on_signals(made[0].run.settings.time_limit) as stop:
        stop.followers += [runner.Stop() for _ in made]

        def drive(number: int, experiment: Any) -> float | None:
            run, directory, report, record = made[number]
            result = runner.run(
                experiment,
                run.settings,
                directory,
                facts=run.facts,
                identity=run.identity,
                logger=run.logger,
                draw=report.pictures(experiment),
                console=quiet if number else console,  # they go in step: the first speaks for all
                record=record,
                stop=stop.followers[number],
            )
            return result["val"]

        return together.train([point.run.experiment for point in made], drive)


def points(directory: Path) -> list[dict[str, Any]]:
    """Returns, in the order of their numbers, what became of a sweep's points.

    Returns:
      A list of `{point, overrides, metric, value, ci95, val}`: the name of its directory, the settings that it was given,
      and of `result.json` what was found; those of a point without a result are None.
    """
    found = []
    for path in sorted(directory.glob("*/.hydra/overrides.yaml"), key=lambda path: (len(path.parts[-3]), path)):
        point = path.parent.parent
        result = {}
        if (point / "result.json").exists():
            result = json.loads((point / "result.json").read_text(encoding="utf-8"))
        found.append(
            {
                "point": point.name,
                "overrides": list(OmegaConf.load(path)),
                **{key: result.get(key) for key in ("metric", "value", "ci95", "val")},
            }
        )
    return found


def distribution_of(directory: Path, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How the results of points are distributed that differ in their seeds alone; None where there are no such.

    Args:
      directory: of the sweep.
      found: from `points`.

    Returns:
      `value`, the mean over seeds; `ci95`, half the width of its 95% interval over tasks and seeds; `sd`, the standard
      deviation over seeds; `values` by `seeds`; and metric, num_tasks and protocol_id, which they share.
    """
    others = [{each for each in point["overrides"] if not each.startswith("seed=")} for point in found]
    if len(found) < 2 or any(other != others[0] for other in others) or any(point["value"] is None for point in found):
        return None
    paths = [directory / point["point"] / "result.json" for point in found]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    shared = {key: results[0][key] for key in ("metric", "num_tasks", "protocol_id")}
    if any(result[key] != value for result in results for key, value in shared.items()):
        return None
    values = [result["value"] for result in results]
    value, ci95 = over_seeds(Ours(values, max(result["ci95"] for result in results), shared["num_tasks"]))
    seeds = [result["seed"] for result in results]
    sd = statistics.stdev(values)
    return {**shared, "value": value, "ci95": ci95, "sd": sd, "seeds": seeds, "values": values}


def _in_words(distribution: dict[str, Any]) -> str:
    scale, unit = (100, "%") if distribution["metric"] == "accuracy" else (1, "")
    value, ci95, sd, low, high = (
        f"{scale * number:.4g}{unit}"
        for number in (
            *(distribution[key] for key in ("value", "ci95", "sd")),
            *(pick(distribution["values"]) for pick in (min, max)),
        )
    )
    return (
        f"{len(distribution['seeds'])} seeds: {distribution['metric']} {value} ± {ci95}, 95% interval over seeds and "
        f"{distribution['num_tasks']} tasks; standard deviation over seeds {sd}, from {low} to {high}"
    )


def table_of(found: list[dict[str, Any]]) -> Table:
    """The points of a sweep, a row each, with the settings in which they differ."""
    common = set.intersection(*(set(point["overrides"]) for point in found)) if len(found) > 1 else set()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("point", "settings", "validation", "test"):
        table.add_column(column, justify="right" if column in ("validation", "test") else "left")
    for point in found:
        own = " ".join(override for override in point["overrides"] if override not in common)
        scale, unit = (100, "%") if point["metric"] == "accuracy" else (1, "")
        said = ["" if x is None else f"{scale * x:.4g}{unit}" for x in (point["val"], point["value"], point["ci95"])]
        table.add_row(point["point"], Text(own), said[0], f"{said[1]} ± {said[2]}" if said[1] else "no result")
    return table

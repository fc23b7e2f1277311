"""A sweep as a whole: its points trained together, and in the end what came of each of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarun.config import SWEEP_DONE
from metarun.files import write_json


class Outcome(Callback):
    """Once all points of a sweep have ended well, writes `sweep.json` into its directory and prints it as a table."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        found = points(directory)
        write_json(directory / SWEEP_DONE, found)
        console = Console()
        console.print(table_of(found))
        console.print(f"{SWEEP_DONE} and a directory for each point in {directory}", highlight=False, soft_wrap=True)


class Point(NamedTuple):
    """A point of a sweep that has been made, and not begun.

    Attributes:
      run: a `composition.Run`.
      directory: where it is to be.
      report: what draws its pictures.
    """

    run: Any
    directory: Path
    report: ModuleType


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
            run, directory, report = made[number]
            result = runner.run(
                experiment,
                run.settings,
                directory,
                facts=run.facts,
                identity=run.identity,
                logger=run.logger,
                draw=report.pictures(experiment),
                console=quiet if number else console,  # they go in step: the first speaks for all
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

"""How speed and memory change with the size of the work, one size at a time."""

import gc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench import meter, recipe
from metarun.compiled.task_map import Layout
from metarun.report.figure import BLUE, LABEL_SIZE, VERMILION, quiet, save
from metarun.system.files import write_bytes

BASE = recipe.CONFIGS["A"]
SIZES = {
    "meta-batch": [BASE._replace(meta_batch_size=size) for size in (4, 8, 16, 32, 64)],
    "inner steps": [BASE._replace(inner_steps=steps) for steps in (1, 2, 5, 10, 20)],
    "way": [BASE._replace(way=way) for way in (2, 5, 10, 20)],
    "image side": [BASE._replace(image=(side, side, 1)) for side in (14, 28, 56, 84)],
}
VALUES = {
    "meta-batch": lambda work: work.meta_batch_size,
    "inner steps": lambda work: work.inner_steps,
    "way": lambda work: work.way,
    "image side": lambda work: work.image[0],
}


class Point(NamedTuple):
    """Speed in tasks/s, and the memory of the step on one device by XLA's account, in bytes."""

    tasks_per_s: float
    predicted_bytes: int


def measure(
    layout: Layout, seconds: float, sizes: Mapping[str, Sequence[recipe.Work]] = SIZES
) -> dict[str, dict[int, Point]]:
    """Times every size for about `seconds`.

    Returns:
      {axis: {value: Point}}.
    """
    found: dict[recipe.Work, Point] = {}
    for work in dict.fromkeys(work for works in sizes.values() for work in works):
        # So that the step measured is the only one alive.
        jax.clear_caches()
        gc.collect()
        found[work] = _measure(work, layout, seconds)
        print(f"{work}: {found[work].tasks_per_s:.4g} tasks/s", file=sys.stderr, flush=True)
    return {axis: {VALUES[axis](work): found[work] for work in works} for axis, works in sizes.items()}


def _measure(work: recipe.Work, layout: Layout, seconds: float) -> Point:
    experiment = recipe.experiment(work, layout)
    timing = meter.time_steps(experiment, seconds)
    return Point(timing.tasks_per_s, experiment.prepare().bytes_predicted)


def write(found: Mapping[str, Mapping[int, Point]], folder: Path, device: str) -> None:
    """Writes `scaling.md` and `scaling.png` into `folder`.

    Raises:
      MetarunError: `folder` cannot be written.
    """
    heading = f"Configuration A with one size changed, on {device}.\n\n"
    write_bytes(folder / "scaling.md", (heading + table(found) + "\n").encode())
    save(draw(found), folder / "scaling.png")


def plain(found: Mapping[str, Mapping[int, Point]]) -> dict[str, list[dict[str, float]]]:
    """The points as JSON holds them: axis -> [{"value", "tasks_per_s", "predicted_bytes"}]."""
    return {
        axis: [{"value": value, **point._asdict()} for value, point in points.items()] for axis, points in found.items()
    }


def table(found: Mapping[str, Mapping[int, Point]]) -> str:
    """The points in Markdown."""
    rows = ["| | | tasks/s | predicted MB a device |", "| --- | ---: | ---: | ---: |"]
    for axis, points in found.items():
        rows += [
            f"| {axis} | {value} | {point.tasks_per_s:.4g} | {point.predicted_bytes / 1e6:.1f} |"
            for value, point in points.items()
        ]
    return "\n".join(rows)


def draw(found: Mapping[str, Mapping[int, Point]]) -> Figure:
    """Returns the picture: speed above, memory below, a column for each size."""
    figure = Figure(figsize=(3 * len(found), 5.5), layout="constrained")
    places = figure.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
    for (axis, points), upper, lower in zip(found.items(), *places, strict=True):
        values = list(points)
        upper.plot(values, [point.tasks_per_s for point in points.values()], color=BLUE, marker="o")
        lower.plot(values, [point.predicted_bytes / 1e6 for point in points.values()], color=VERMILION, marker="o")
        for panel in (upper, lower):
            quiet(panel, "")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=10)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
        lower.set_xticks(values, [str(value) for value in values])
        lower.set_xlabel(axis, fontsize=LABEL_SIZE)
    places[0][0].set_ylabel("tasks/s", fontsize=LABEL_SIZE)
    places[1][0].set_ylabel("predicted MB a device", fontsize=LABEL_SIZE)
    return figure

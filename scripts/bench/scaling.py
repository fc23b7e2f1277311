"""How speed and memory change with the size of the work, one size at a time."""

import gc
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench import meter, recipe, torch_peer
from bench.peers import line_of
from metarun.compiled.task_map import Layout
from metarun.errors import MetarunError
from metarun.report.figure import BLUE, GREY, LABEL_SIZE, VERMILION, quiet, save
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
    """One size of the work.

    Attributes:
      tasks_per_s: speed.
      predicted_bytes: memory of the step on one device, by XLA's account.
      peer_tasks_per_s: speed of the same in PyTorch, the fastest of its forms; None: not measured.
    """

    tasks_per_s: float
    predicted_bytes: int
    peer_tasks_per_s: float | None = None


def measure(
    layout: Layout,
    seconds: float,
    peer: str | None = None,
    sizes: Mapping[str, Sequence[recipe.Work]] = SIZES,
) -> dict[str, dict[int, Point]]:
    """Times every size for about `seconds`; with `peer`, a Python that has PyTorch, the same work there, right after it.

    Returns:
      {axis: {value: Point}}.
    """
    found: dict[recipe.Work, Point] = {}
    for work in dict.fromkeys(work for works in sizes.values() for work in works):
        # So that the step measured is the only one alive.
        jax.clear_caches()
        gc.collect()
        found[work] = _measure(work, layout, seconds)
        if peer is not None:
            found[work] = found[work]._replace(peer_tasks_per_s=_measure_peer(work, peer, seconds))
        beside = "" if peer is None else f", {found[work].peer_tasks_per_s:.4g} in PyTorch"
        print(f"{work}: {found[work].tasks_per_s:.4g} tasks/s{beside}", file=sys.stderr, flush=True)
    return {axis: {VALUES[axis](work): found[work] for work in works} for axis, works in sizes.items()}


def _measure(work: recipe.Work, layout: Layout, seconds: float) -> Point:
    experiment = recipe.experiment(work, layout)
    timing = meter.time_steps(experiment, seconds)
    return Point(timing.tasks_per_s, experiment.prepare().bytes_predicted)


def _measure_peer(work: recipe.Work, python: str, seconds: float) -> float:
    params, batch = recipe.weights(work), next(recipe.meta_batches(work))
    tasks = [jax.tree.map(lambda x, place=place: x[place], batch) for place in range(work.meta_batch_size)]
    ours = float(jax.jit(recipe.outer_loss(work))(params, tasks[0]))
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {**work._asdict(), "method": "maml", "network": "conv4", "outer_lr": recipe.OUTER_LR}
        torch_peer.write(Path(folder), settings, params, tasks)
        for mode, command in torch_peer.commands(python, Path(folder), "maml", seconds).items():
            try:
                line = line_of(command, own=False)
                torch_peer.check_same(ours, line["first_loss"])
            except MetarunError as error:
                print(f"{work}: PyTorch, {mode}, is left out: {error}", file=sys.stderr)
            else:
                rates.append(line["tasks_per_s"])
    if not rates:
        raise MetarunError(f"--beside={python}: expected a Python with PyTorch that computes {work}.")
    return max(rates)


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
    rows = [
        "| | | tasks/s | in PyTorch | ratio | predicted MB a device |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for axis, points in found.items():
        for value, point in points.items():
            peer = point.peer_tasks_per_s
            beside = " | | " if peer is None else f" | {peer:.4g} | {point.tasks_per_s / peer:.2f} "
            rows.append(f"| {axis} | {value} | {point.tasks_per_s:.4g}{beside}| {point.predicted_bytes / 1e6:.1f} |")
    return "\n".join(rows)


def draw(found: Mapping[str, Mapping[int, Point]]) -> Figure:
    """Returns the picture: speed above, memory below, a column for each size."""
    figure = Figure(figsize=(3 * len(found), 5.5), layout="constrained")
    places = figure.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
    for (axis, points), upper, lower in zip(found.items(), *places, strict=True):
        values = list(points)
        upper.plot(values, [point.tasks_per_s for point in points.values()], color=BLUE, marker="o", label="metarun")
        if all(point.peer_tasks_per_s is not None for point in points.values()):
            rates = [point.peer_tasks_per_s for point in points.values()]
            upper.plot(values, rates, color=GREY, marker="s", label="PyTorch")
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
    if len(places[0][0].lines) > 1:
        places[0][0].legend(frameon=False, fontsize=LABEL_SIZE)
    places[0][0].set_ylabel("tasks/s", fontsize=LABEL_SIZE)
    places[1][0].set_ylabel("predicted MB a device", fontsize=LABEL_SIZE)
    return figure

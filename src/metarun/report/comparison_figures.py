"""The figures of a comparison, for a paper: results with their intervals, and learning curves over seeds."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from metarun.report.collection import Record, setting_of
from metarun.report.curves import TITLES
from metarun.report.figure import GREY, LABEL_SIZE, NOTE_SIZE, PALETTE, Lettering, quiet
from metarun.report.pivot import Pivot, quantity
from metarun.report.replicates import Replicates, replicates_of
from metarun.report.seed_curves import Band, curve_over_seeds
from metarun.report.traits import TASKS, told_apart

MOST_LINES = len(PALETTE)  # of a panel: more cannot be told apart
_LONGEST = 36  # characters of a line of a label
_STYLES = ("-", "--", ":", "-.")
_PARTS = {"val": "Validation", "train": "Training"}


def figures(records: Sequence[Record], table: Pivot) -> Mapping[str, Figure]:
    """All figures, by the names of their files without the ends.

    `results`: each result with its interval, a panel a column of `table`, and a faint dot a seed. `validation_curves` and
    `training_curves`: the mean over seeds and, as a band, its 95% interval over seeds, a panel a setting; of more than
    `MOST_LINES` lines in a panel, those of the best results.

    Args:
      records: from `collection.collect`.
      table: of the same records.
    """
    found = {"results": draw_results(table)}
    for part, name in _PARTS.items():
        if figure := draw_curves(records, part):
            found[f"{name.lower()}_curves"] = figure
    return found


def draw_results(table: Pivot) -> Figure:
    """Returns the figure of results, one axes a column of `table`."""
    letters = Lettering([*table.rows, *(word for column in table.columns for word in column), *table.notes.values()])
    labels = [_folded(label, letters) for label in table.rows]
    height = 0.24 * sum(label.count("\n") + 1 for label in labels) + 0.2 * len(labels) + 0.9
    notes = "\n".join(
        textwrap.fill(letters.short(f"{letter}: {text}", None), 110) for letter, text in table.notes.items()
    )
    columns = _columns(len(table.columns))
    lines = -(-len(table.columns) // columns)
    size = (2.6 * columns + 1.6, lines * height + 0.17 * (notes.count("\n") + 1) * bool(notes))
    figure = Figure(figsize=size, layout="constrained")
    places = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for unused in places[len(table.columns) :]:
        unused.remove()
    for column, axes in enumerate(places[: len(table.columns)]):
        metric = table.metrics[column]
        scale = 100 if metric == "accuracy" else 1
        quiet(axes, _folded(table.heading(column), letters))
        axes.title.set_fontfamily(letters.families)
        axes.set_xlabel(quantity(metric), fontsize=LABEL_SIZE)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        for row in range(len(table.rows)):
            cell = table.cells.get((row, column))
            if cell is None or cell.group.value is None:
                continue
            seeds = [scale * record.ended["value"] for record in cell.group.records]
            value, half = scale * cell.group.value, scale * (cell.group.ci95 or 0)
            if len(seeds) > 1:
                axes.plot(seeds, [row + 0.22] * len(seeds), "o", color=GREY, alpha=0.5, markersize=3, linewidth=0)
            color, face = PALETTE[0], PALETTE[0] if not cell.marks else "white"
            axes.plot([value - half, value + half], [row, row], color=color, linewidth=1.5)
            axes.plot([value], [row], "o", color=color, markerfacecolor=face, markersize=5)
            if cell.marks:
                text = ",".join(cell.marks)
                above: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points"}
                axes.annotate(text, (value, row), ha="center", va="bottom", fontsize=NOTE_SIZE - 2, color=GREY, **above)
        axes.set_yticks(range(len(labels)), labels, fontsize=NOTE_SIZE, family=letters.families)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(labelleft=column % columns == 0)
    if notes:
        figure.supxlabel(notes, fontsize=NOTE_SIZE - 1, x=0.01, ha="left", family=letters.families)
    return figure


def draw_curves(records: Sequence[Record], part: str) -> Figure | None:
    """Returns the figure of curves of one part, "val" or "train", one axes a setting; None where there are none."""
    groups = [group for group in replicates_of(records) if group.records[0].result and not group.records[0].evaluation]
    rows = told_apart(groups, ["method"], [*TASKS, "metric"])
    settings: dict[tuple[str, str], list[tuple[str, Replicates, Band]]] = {}
    for group, row in zip(groups, rows, strict=True):
        result = group.records[0].ended
        if band := curve_over_seeds(group, part):
            lines = settings.setdefault((setting_of(result), result["metric"]), [])
            lines.append((row.label(["method"]), group, band))
    if not settings:
        return None
    counts = {where: len(lines) for where, lines in settings.items()}
    settings = {where: _best(lines, where[1]) for where, lines in settings.items()}
    labels = list(dict.fromkeys(label for lines in settings.values() for label, *_ in lines))
    letters = Lettering([*labels, *(setting for setting, _ in settings)])
    style: dict[str, dict[str, Any]] = {
        label: {"color": PALETTE[k % len(PALETTE)], "linestyle": _STYLES[k // len(PALETTE) % len(_STYLES)]}
        for k, label in enumerate(labels)
    }
    columns = _columns(len(settings))
    height = -(-len(settings) // columns)
    legend = 0.2 * -(-len(labels) // columns) + 0.1
    figure = Figure(figsize=(max(3.4 * columns, 4.5), 2.7 * height + legend), layout="constrained")
    places = figure.subplots(height, columns, squeeze=False).flatten()
    for unused in places[len(settings) :]:
        unused.remove()
    for axes, ((setting, metric), lines) in zip(places, settings.items(), strict=False):
        title = (
            setting
            if len(lines) == counts[setting, metric]
            else f"{setting}: best {len(lines)} of {counts[setting, metric]}"
        )
        quiet(axes, _folded(title, letters))
        axes.title.set_fontfamily(letters.families)
        axes.set_xlabel("outer step", fontsize=LABEL_SIZE)
        axes.set_ylabel(f"{_PARTS[part].lower()} {quantity(metric)}", fontsize=LABEL_SIZE)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if metric not in TITLES:
            axes.set_yscale("log")
        opacity = max(0.06, min(0.2, 0.5 / len(lines)))  # so that many bands can be looked through
        for label, _, band in lines:
            _draw_band(axes, band, metric, style[label], opacity)
    handles = [Line2D([], [], **style[label], linewidth=1.6, label=_folded(label, letters)) for label in labels]
    placed = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=NOTE_SIZE
    )
    for text in placed.get_texts():
        text.set_fontfamily(letters.families)
    return figure


def _draw_band(axes: Axes, band: Band, metric: str, style: Mapping[str, Any], opacity: float) -> None:
    scale, most = (100, 100) if metric == "accuracy" else (1, np.inf)
    mean = scale * band.mean
    axes.plot(band.steps, mean, linewidth=1.6, **style)
    if band.half is not None:
        half = scale * np.where(np.isfinite(band.half), band.half, 0)
        axes.fill_between(
            band.steps, mean - half, np.minimum(mean + half, most), color=style["color"], alpha=opacity, linewidth=0
        )


def _best(lines: list[tuple[str, Replicates, Band]], metric: str) -> list[tuple[str, Replicates, Band]]:
    """Those of the best results, in their order."""
    sign = 1 if metric in TITLES else -1
    known = [line for line in lines if line[1].value is not None]
    kept = (
        sorted(known, key=lambda line: -sign * (line[1].value or 0))[:MOST_LINES] if len(lines) > MOST_LINES else lines
    )
    return [line for line in lines if any(line is each for each in kept)]


def _columns(panels: int) -> int:
    """How many panels stand side by side: three at most, and four in a square."""
    return 2 if panels == 4 else min(panels, 3)


def _folded(text: str, letters: Lettering) -> str:
    """A label that can be drawn, in lines that are not too long."""
    return textwrap.fill(letters.short(text, None), _LONGEST, break_on_hyphens=False)

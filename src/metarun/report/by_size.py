"""A result against the sizes of tasks, where these differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from metarun.report.figure import BLUE, LABEL_SIZE, NOTE_SIZE, panels, quiet, save

FIELDS = {"by_way": "Way", "by_shot": "Shot", "by_class_shot": "Shot of a class"}


def by_size(result: Mapping[str, Any], metric: str, output: Path) -> None:
    """Draws what was found on tasks of each way and each shot, with intervals, as a PNG.

    Args:
      result: with an entry `by_way`, `by_shot` or `by_class_shot`, as in `result.json`.
      metric: of the run.
      output: the PNG to write.

    Raises:
      MetarunError: `output` cannot be written.
    """
    save(draw_by_size(result, metric), output)


def draw_by_size(result: Mapping[str, Any], metric: str) -> Figure:
    """Returns the figure of `by_size`, one axes a kind of size."""
    shown = {field: words for field, words in FIELDS.items() if field in result}
    figure, all_axes = panels(len(shown), width=5.0, height=3.6)
    for (field, words), axes in zip(shown.items(), all_axes, strict=True):
        sizes, found = [int(size) for size in result[field]], [*result[field].values()]
        quiet(axes, f"{metric.capitalize()} by {words.lower()}")
        errors = [each["ci95"] or 0 for each in found]
        axes.errorbar(sizes, [each["value"] for each in found], errors, color=BLUE, marker="o", markersize=4, capsize=2)
        axes.set_xlabel(words, fontsize=LABEL_SIZE)
        axes.set_ylabel(metric, fontsize=LABEL_SIZE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if metric == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))  # as many decimals as its ticks need
    figure.supxlabel("Bars: 95% interval over the tasks of that size", fontsize=NOTE_SIZE)
    return figure

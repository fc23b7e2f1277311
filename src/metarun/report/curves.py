"""The learning curve of a run, drawn from its metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from metarun.errors import DataError
from metarun.report.figure import BLUE, LABEL_SIZE, VERMILION, quiet, save
from metarun.training.result import read_metrics
from metarun.trust.equivalence import interval_said

# Of the metrics that are no errors.
TITLES = {"accuracy": "Accuracy on query sets", "reward": "Total reward of a trial"}

Records = Mapping[int, Mapping[str, float | None]]

# From this many points on, a curve is a band of noise, and a running mean is drawn over it.
SMOOTH_FROM = 60
# A running mean then covers this fraction of the run: enough to see the trend, little enough to keep the turns.
SMOOTH_FRACTION = 1 / 25


def learning_curve(metrics_file: Path, output: Path, *, metric: str, selected_step: int | None = None) -> None:
    """Draws training loss, and training and validation metric with its 95% interval, as a PNG.

    Args:
      metrics_file: a run's metrics.jsonl.
      output: the PNG to write.
      metric: name of the quantity: "accuracy" (fractions, drawn as percentages), "reward" (of trials), or an error such
        as "mse" (drawn on a logarithmic scale).
      selected_step: the step whose parameters validation chose; marked on the validation curve.

    Raises:
      DataError: the file cannot be read, holds nothing to draw, or has no validation at `selected_step`.
      MetarunError: `output` cannot be written.
    """
    records, _ = read_metrics(metrics_file)  # a report of the run names what does not fit
    if not any("train/loss" in record for record in records.values()):
        raise DataError(f"{metrics_file} has no train/loss to draw.")
    if selected_step is not None and records.get(selected_step, {}).get(f"val/{metric}") is None:
        raise DataError(f"{metrics_file} has no val/{metric} at the selected step {selected_step}.")
    save(draw_learning_curve(records, metric=metric, selected_step=selected_step), output)


def draw_learning_curve(records: Records, *, metric: str, selected_step: int | None = None) -> Figure:
    """Returns the figure of `learning_curve`: the loss at the left, the metric at the right.

    Args:
      records: `{step: {name: value}}`, as `result.read_metrics` returns.
      metric: as in `learning_curve`.
      selected_step: as in `learning_curve`; its record has the validation metric.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    quiet(loss_axes, "Training loss")
    quiet(metric_axes, TITLES.get(metric, f"{metric.upper()} on query sets"))
    _draw_training(loss_axes, *_series(records, "train/loss"))
    of_training = f"train/{metric}" if metric == "reward" else f"train/query/{metric}"
    legend = [_draw_training(metric_axes, *_series(records, of_training))]
    if any(f"val/{metric}" in record for record in records.values()):
        legend.append(_draw_validation(metric_axes, records, metric))
    if selected_step is not None:
        legend.append(_mark_selected(metric_axes, selected_step, records[selected_step], metric))
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False, fontsize=LABEL_SIZE)

    for axes in (loss_axes, metric_axes):
        axes.set_xlabel("outer step", fontsize=LABEL_SIZE)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if metric not in TITLES:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    if metric == "accuracy":
        metric_axes.yaxis.set_major_formatter(PercentFormatter(1))
        lowest, highest = metric_axes.get_ylim()
        metric_axes.set_ylim(max(lowest, 0), min(highest, 1.01))
    return figure


def _series(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps that have a finite `name`, and its values there."""
    steps = np.array([step for step, record in records.items() if name in record])
    values = np.array([record[name] for record in records.values() if name in record], dtype=float)
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _running_mean(steps: np.ndarray, values: np.ndarray, reach: int) -> np.ndarray:
    """Returns at every step the mean of the values at most `reach` steps away, however the steps are spaced."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - reach, side="left")
    end = np.searchsorted(steps, steps + reach, side="right")
    return (sums[end] - sums[first]) / (end - first)


def _draw_training(axes: Axes, steps: np.ndarray, values: np.ndarray) -> Line2D:
    if len(steps) < SMOOTH_FROM:
        (line,) = axes.plot(steps, values, color=BLUE, linewidth=1.6, marker=".", label="training")
        return line
    reach = max(1, round(steps[-1] * SMOOTH_FRACTION / 2))
    axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    smooth = _running_mean(steps, values, reach)
    (line,) = axes.plot(steps, smooth, color=BLUE, linewidth=1.8, label=f"training, mean over {2 * reach:,} steps")
    return line


def _draw_validation(axes: Axes, records: Records, metric: str) -> Line2D:
    steps, values = _series(records, f"val/{metric}")
    ci95 = np.array([records[step].get("val/ci95") for step in steps.tolist()], dtype=float)
    axes.fill_between(steps, values - ci95, values + ci95, color=VERMILION, alpha=0.2, linewidth=0)
    label = "validation, 95% interval over tasks"
    (line,) = axes.plot(steps, values, color=VERMILION, linewidth=1.6, marker="o", markersize=3.5, label=label)
    return line


def _mark_selected(axes: Axes, step: int, record: Mapping[str, Any], metric: str) -> Line2D:
    value, ci95 = record[f"val/{metric}"], record.get("val/ci95")
    accuracy = metric == "accuracy"
    number = f"{value:{'.1%' if accuracy else '.3g'}}{interval_said(ci95, '.1%' if accuracy else '.2g')}"
    ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black"}
    (mark,) = axes.plot([step], [value], linestyle="none", label=f"selected, step {step:,}: {number}", **ring)
    return mark

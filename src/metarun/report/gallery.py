"""A few test tasks to look at: what a learner was shown, what it was asked, and what it answered."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metarun.report.figure import (
    BLUE,
    GREY,
    LABEL_SIZE,
    NOTE_SIZE,
    TITLE_SIZE,
    VERMILION,
    draw_image,
    draw_signal,
    panels,
    quiet,
    save,
)

if TYPE_CHECKING:
    from metarun.types import Split, Task

RIGHT, WRONG = "✓", "✗"
QUERIES_SHOWN = 5  # of a class
CLASSES_IN_A_COLUMN = 10
CELL_INCHES = 0.5
# In cells: an image is 1 by 1, its predicted class stands below it, and gaps part label, support and query.
PITCH_X, PITCH_Y = 1.12, 1.55
LABEL_WIDTH, GAP, HEADING = 0.6, 0.45, 0.55
TITLE_WIDTH = 6.5


def image_gallery(tasks: "Task", predictions: np.ndarray, output: Path, *, num_tasks: int) -> None:
    """Draws the support and query images of the first tasks, with the class predicted for each query, as a PNG.

    A row is a class. Below a query stands the class predicted for it, after a tick (and a thin frame) if that is right
    and a cross (and a thick frame) if it is wrong. Of many queries the first of every class are shown; a note says how
    many of how many.

    Args:
      tasks: a batch of classification tasks as NumPy arrays: `x: [num_tasks, n, height, width, channel]`, images with 1
        or 3 channels; or `x: [num_tasks, n, length, channel]`, signals, which are drawn as lines; `y: [num_tasks, n]`.
        What is not in [0, 1] is drawn by the least and the greatest value of the tasks that are shown.
      predictions: the labels predicted for the query images, `[num_tasks, num_query]`.
      output: the PNG to write.
      num_tasks: how many tasks to draw, if there are so many.

    Raises:
      MetarunError: `output` cannot be written.
    """
    save(draw_image_gallery(tasks, predictions, num_tasks=num_tasks), output)


def draw_image_gallery(tasks: "Task", predictions: np.ndarray, *, num_tasks: int) -> Figure:
    """Returns the figure of `image_gallery`, one axes a task."""
    tasks = _in_unit_range(tasks, num_tasks)
    num_queries = _most_of_a_class(tasks.query)
    grid = _Grid(
        way=max(int(_split(tasks.support, index).y.max()) for index in range(len(tasks.support.y))) + 1,
        shot=_most_of_a_class(tasks.support),
        queries=min(num_queries, QUERIES_SHOWN),
    )
    figure, all_axes = panels(
        min(num_tasks, len(predictions)), width=grid.width * CELL_INCHES, height=grid.height * CELL_INCHES + 0.4
    )
    for index, axes in enumerate(all_axes):
        query = _split(tasks.query, index)
        answers = predictions[index] if tasks.query.mask is None else predictions[index][tasks.query.mask[index]]
        is_right = answers == query.y
        _draw_images(axes, grid, _split(tasks.support, index), query, answers)
        title = f"Task {index + 1}: accuracy {is_right.mean():.1%} ({is_right.sum()} of {len(is_right)})"
        axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    note = f"Rows are classes; below each query stands the class predicted,\n{RIGHT} right, {WRONG} wrong"
    if grid.queries < num_queries:
        note += f"; of {num_queries} queries a class, the first {grid.queries} shown"
    figure.supxlabel(note, fontsize=NOTE_SIZE)
    return figure


def regression_gallery(tasks: "Task", before: np.ndarray, after: np.ndarray, output: Path, *, num_tasks: int) -> None:
    """Draws the first tasks of a regression from one number to one: points, and answers before and after adaptation.

    Args:
      tasks: a batch of tasks as NumPy arrays, `x` and `y: [num_tasks, n, 1]`.
      before: the answers at the query points before adaptation, `[num_tasks, num_query, 1]`; a line joins them.
      after: the same after adaptation; the title states their error.
      output: the PNG to write.
      num_tasks: how many tasks to draw, if there are so many.

    Raises:
      MetarunError: `output` cannot be written.
    """
    save(draw_regression_gallery(tasks, before, after, num_tasks=num_tasks), output)


def draw_regression_gallery(tasks: "Task", before: np.ndarray, after: np.ndarray, *, num_tasks: int) -> Figure:
    """Returns the figure of `regression_gallery`, one axes a task; all have the same scales, to be compared."""
    figure, all_axes = panels(min(num_tasks, len(after)), width=4.0, height=3.0, share_scales=True)
    for index, axes in enumerate(all_axes):
        support, query = _split(tasks.support, index), _split(tasks.query, index)
        mse = np.mean((after[index] - query.y) ** 2)
        quiet(axes, f"Task {index + 1}: mse {mse:.3g} at {len(query.y)} queries")
        order = np.argsort(query.x[:, 0])
        x = query.x[order]
        axes.plot(x, before[index][order], color=GREY, linestyle="--", linewidth=1.5, label="before adaptation")
        axes.plot(x, after[index][order], color=BLUE, linewidth=2, label="after adaptation")
        axes.plot(x, query.y[order], "o", color=GREY, fillstyle="none", markersize=4, label="query, true")
        axes.plot(support.x, support.y, "^", color=VERMILION, markersize=8, markeredgecolor="white", label="support")
        axes.set_xlabel("x", fontsize=LABEL_SIZE)
        axes.set_ylabel("y", fontsize=LABEL_SIZE)
        axes.tick_params(labelbottom=True, labelleft=True)
    entries = all_axes[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=4, frameon=False, fontsize=LABEL_SIZE)
    return figure


class _Grid(NamedTuple):
    """Where the images of a task stand, in cells; classes fill one column, then the next."""

    way: int
    shot: int
    queries: int

    @property
    def columns(self) -> int:
        return -(-self.way // CLASSES_IN_A_COLUMN)

    @property
    def rows(self) -> int:
        return -(-self.way // self.columns)

    @property
    def column_width(self) -> float:
        return self.query_left + self.queries * PITCH_X + GAP

    @property
    def query_left(self) -> float:
        return LABEL_WIDTH + self.shot * PITCH_X + GAP

    @property
    def width(self) -> float:
        return max(self.columns * self.column_width, TITLE_WIDTH)

    @property
    def height(self) -> float:
        return HEADING + self.rows * PITCH_Y


def _most_of_a_class(splits: "Split") -> int:
    return max(np.bincount(_split(splits, index).y).max() for index in range(len(splits.y)))


def _in_unit_range(tasks: "Task", num_tasks: int) -> "Task":
    """The first tasks, their inputs in [0, 1]."""
    masks = [None if split.mask is None else split.mask[:num_tasks] for split in tasks]
    tasks = type(tasks)(
        *(type(split)(split.x[:num_tasks], split.y[:num_tasks], mask) for split, mask in zip(tasks, masks, strict=True))
    )
    low = min(0.0, *(float(split.x.min()) for split in tasks))
    high = max(1.0, *(float(split.x.max()) for split in tasks))
    if (low, high) == (0, 1):
        return tasks
    return type(tasks)(*(split._replace(x=(split.x - low) / (high - low)) for split in tasks))


def _split(splits: "Split", index: int) -> "Split":
    """A set of the task with that number, without padding."""
    its = slice(None) if splits.mask is None else splits.mask[index]
    return type(splits)(splits.x[index][its], splits.y[index][its])


def _draw_images(axes: Axes, grid: _Grid, support: "Split", query: "Split", answers: np.ndarray) -> None:
    axes.set(xlim=(0, grid.width), ylim=(grid.height, 0), aspect="equal", anchor="NW")
    axes.set_axis_off()
    note: dict[str, Any] = {"fontsize": NOTE_SIZE, "color": GREY}
    draw = draw_image if support.x.ndim == 4 else draw_signal
    for column in range(grid.columns):
        left = column * grid.column_width
        axes.text(left + LABEL_WIDTH, HEADING - 0.15, "support", **note)
        axes.text(left + grid.query_left, HEADING - 0.15, "query", **note)
    for label in range(grid.way):
        column, row = divmod(label, grid.rows)
        left, top = column * grid.column_width, HEADING + row * PITCH_Y
        axes.text(left + LABEL_WIDTH / 2, top + 0.5, str(label), ha="center", va="center", **note)
        for number, image in enumerate(support.x[support.y == label]):
            draw(axes, image, left + LABEL_WIDTH + number * PITCH_X, top)
        is_class = query.y == label
        for number, (image, answer) in enumerate(
            zip(query.x[is_class][: grid.queries], answers[is_class], strict=False)
        ):
            image_left = left + grid.query_left + number * PITCH_X
            draw(axes, image, image_left, top)
            _mark_answer(axes, answer, answer == label, image_left, top)


def _mark_answer(axes: Axes, answer: int, is_right: bool, left: float, top: float) -> None:
    color = BLUE if is_right else VERMILION
    axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=color, linewidth=1 if is_right else 3))
    mark = f"{RIGHT if is_right else WRONG} {answer}"
    weight = "normal" if is_right else "bold"
    axes.text(left + 0.5, top + 1.27, mark, ha="center", va="center", color=color, weight=weight, fontsize=NOTE_SIZE)

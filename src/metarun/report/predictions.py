"""What a learner answered to pictures of one's own: a table to print, a CSV file, and a picture."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.table import Table
from rich.text import Text

from metarun.errors import shown
from metarun.report.figure import BLUE, FAINT, GREY, LABEL_SIZE, NOTE_SIZE, TITLE_SIZE, Lettering, draw_image, save
from metarun.system.files import write_bytes

ROWS_SHOWN = 40  # of the table
CLASSES_SHOWN, SUPPORT_SHOWN, QUERIES_SHOWN = 20, 8, 40  # of the picture
# In inches and, below, in cells of that size: an image is 1 by 1.
CELL_INCHES = 0.6
PITCH_X, PITCH_Y, HEADING = 1.12, 1.2, 0.7
NAME_WIDTH = 3.2
QUERY_COLUMNS, QUERY_WIDTH = 2, 6.2
BAR_LEFT, BAR_WIDTH, BAR_TOP, BAR_HEIGHT = 1.2, 3.2, 0.72, 0.2


class Predictions(NamedTuple):
    """Answers, and what they are answers to.

    Attributes:
      classes: the name of each class.
      support_x: the pictures that the learner was shown, `[n, height, width, channel]` in [0, 1].
      support_y: their classes, `[n]` whole numbers.
      files: the name of each query picture.
      query_x: the query pictures, like `support_x`.
      probabilities: `[num_query, num_classes]` float64.
    """

    classes: Sequence[str]
    support_x: np.ndarray
    support_y: np.ndarray
    files: Sequence[str]
    query_x: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> list[str]:
        """The name of the likeliest class of each query."""
        return [self.classes[best] for best in self.probabilities.argmax(1)]


def table(found: Predictions) -> Table:
    """The likeliest class of each query and its probability, to be printed; of many queries, the first."""
    rows = Table("query", "predicted", "probability", box=None, pad_edge=False, header_style="bold")
    rows.columns[2].justify = "right"
    answers = list(zip(found.files, found.predicted, found.probabilities.max(1), strict=True))
    for file, name, probability in answers[:ROWS_SHOWN]:
        rows.add_row(Text(shown(file)), Text(shown(name)), f"{probability:.1%}")
    if len(answers) > ROWS_SHOWN:
        rows.caption = f"and {len(answers) - ROWS_SHOWN:,} more, see the CSV file"
    return rows


def write_csv(found: Predictions, output: Path) -> None:
    """Writes a row for each query: its file, the class predicted, and the probability of each class.

    Raises:
      MetarunError: `output` cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "predicted", *found.classes])
    for file, name, row in zip(found.files, found.predicted, found.probabilities.tolist(), strict=True):
        writer.writerow([file, name, *row])
    write_bytes(output, text.getvalue().encode("utf-8", "surrogateescape"))


def picture(found: Predictions, output: Path) -> None:
    """Draws the pictures as the learner saw them, the likeliest class of each query and its probability, as a PNG.

    Of many classes, pictures of a class, and queries the first are drawn, and a note says so.

    Raises:
      MetarunError: `output` cannot be written.
    """
    save(draw_predictions(found), output)


def draw_predictions(found: Predictions) -> Figure:
    """Returns the figure of `picture`: the support set above, a row for each class; the queries below."""
    num_classes, num_queries = min(len(found.classes), CLASSES_SHOWN), min(len(found.files), QUERIES_SHOWN)
    query_rows = -(-num_queries // QUERY_COLUMNS)
    width = max(QUERY_COLUMNS * QUERY_WIDTH, NAME_WIDTH + (SUPPORT_SHOWN + 1) * PITCH_X)
    height = 2 * HEADING + (num_classes + query_rows) * PITCH_Y
    figure = Figure(figsize=(width * CELL_INCHES, height * CELL_INCHES), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    letters = Lettering([*found.classes[:num_classes], *found.files[:num_queries], *found.predicted[:num_queries]])
    _heading(axes, 0, "Support", num_classes, len(found.classes), "classes")
    for label in range(num_classes):
        _draw_class(axes, found, letters, label, HEADING + label * PITCH_Y)
    top = HEADING + num_classes * PITCH_Y
    _heading(axes, top, "Queries", num_queries, len(found.files), "queries")
    for query in range(num_queries):
        row, column = divmod(query, QUERY_COLUMNS)
        _draw_query(axes, found, letters, query, column * QUERY_WIDTH, top + HEADING + row * PITCH_Y)
    return figure


def _heading(axes: Axes, top: float, title: str, shown: int, of: int, what: str) -> None:
    note = f": the first {shown} of {of:,} {what}" if shown < of else ""
    axes.text(0, top + HEADING / 2, title + note, va="center", fontsize=TITLE_SIZE, weight="bold")


def _draw_class(axes: Axes, found: Predictions, letters: Lettering, label: int, top: float) -> None:
    images = found.support_x[found.support_y == label]
    style: dict[str, Any] = {"va": "center", "family": letters.families, "fontsize": LABEL_SIZE}
    axes.text(NAME_WIDTH - 0.2, top + 0.5, letters.short(found.classes[label]), ha="right", **style)
    for number, image in enumerate(images[:SUPPORT_SHOWN]):
        draw_image(axes, image, NAME_WIDTH + number * PITCH_X, top)
    if len(images) > SUPPORT_SHOWN:
        left = NAME_WIDTH + SUPPORT_SHOWN * PITCH_X
        axes.text(left, top + 0.5, f"+ {len(images) - SUPPORT_SHOWN}", va="center", fontsize=NOTE_SIZE, color=GREY)


def _draw_query(axes: Axes, found: Predictions, letters: Lettering, query: int, left: float, top: float) -> None:
    probability = found.probabilities[query].max()
    draw_image(axes, found.query_x[query], left, top)
    bar = left + BAR_LEFT
    style: dict[str, Any] = {"va": "center", "family": letters.families}
    weight = "bold" if len(letters.families) == 1 else "normal"  # which another font may not have
    axes.text(bar, top + 0.16, letters.short(found.files[query]), fontsize=NOTE_SIZE, color=GREY, **style)
    axes.text(bar, top + 0.48, letters.short(found.predicted[query]), fontsize=LABEL_SIZE, weight=weight, **style)
    axes.add_patch(Rectangle((bar, top + BAR_TOP), BAR_WIDTH, BAR_HEIGHT, color=FAINT, linewidth=0))
    axes.add_patch(Rectangle((bar, top + BAR_TOP), BAR_WIDTH * probability, BAR_HEIGHT, color=BLUE, linewidth=0))
    end = bar + BAR_WIDTH + 0.15
    axes.text(end, top + BAR_TOP + BAR_HEIGHT / 2, f"{probability:.0%}", va="center", fontsize=NOTE_SIZE)

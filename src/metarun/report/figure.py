"""What the pictures share: colours that colour-blind readers can tell apart, quiet axes, and a save that leaves no half
a file. Figures are plain objects; matplotlib's global state (pyplot, rcParams) is never touched."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.files import write_bytes

# Okabe and Ito, "Color universal design", 2008.
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREY = "#767676"
FAINT = "#E3E3E3"

TITLE_SIZE = 11
LABEL_SIZE = 10
NOTE_SIZE = 9

NAME_LENGTH = 24  # characters of a name
ASPECT = 1.3  # of a figure of several panels, width to height
NOTE_HEIGHT = 0.4  # inches, for the note or legend below the panels


def panels(num_panels: int, *, width: float, height: float, share_scales: bool = False) -> tuple[Figure, list[Axes]]:
    """Makes a figure of equal panels, somewhat wider than high, in rows of about equal length.

    Args:
      num_panels: how many.
      width: of one panel, in inches.
      height: of one panel, in inches.
      share_scales: whether all have the same limits.

    Returns:
      The figure and its panels, row by row.
    """
    most_columns = max(1, round((ASPECT * num_panels * height / width) ** 0.5))
    rows = -(-num_panels // most_columns)
    columns = -(-num_panels // rows)
    figure = Figure(figsize=(columns * width, rows * height + NOTE_HEIGHT), layout="constrained")
    places = figure.subplots(rows, columns, sharex=share_scales, sharey=share_scales, squeeze=False).flatten()
    for unused in places[num_panels:]:
        unused.remove()
    return figure, list(places[:num_panels])


def quiet(axes: Axes, title: str) -> None:
    """Gives `axes` a title at the left, a faint grid, and only the two spines that carry a scale."""
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelsize=NOTE_SIZE)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def draw_image(axes: Axes, image: np.ndarray, left: float, top: float) -> None:
    """Draws `image: [height, width, channel]` in [0, 1] as a cell of 1 by 1, `axes` growing downwards."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(left, left + 1, top + 1, top))


def short(name: str) -> str:
    """A name without what matplotlib would take for mathematics, cut at its front where it is long."""
    name = name if len(name) <= NAME_LENGTH else "…" + name[1 - NAME_LENGTH :]
    return name.replace("$", r"\$").replace("\n", " ")


def save(figure: Figure, output: Path) -> None:
    """Writes `figure` to `output` as a PNG: all of it or, on an error, nothing.

    Args:
      figure: what was drawn.
      output: the file to write or replace; its directory is made if it is not there.

    Raises:
      MetarunError: `output` cannot be written.
    """
    image = io.BytesIO()
    # Without the name of the software, equal figures are equal files.
    figure.savefig(image, format="png", dpi=160, metadata={"Software": None})
    write_bytes(output, image.getvalue())

"""What the pictures share: colours that colour-blind readers can tell apart, quiet axes, and a save that leaves no half
a file. Figures are plain objects; matplotlib's global state (pyplot, rcParams) is not changed, but for the moment in which
a PDF or an SVG is written."""

import base64
import io
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from metarun.errors import shown
from metarun.system.files import write_bytes

# Okabe and Ito, "Color universal design", 2008.
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREY = "#767676"
FAINT = "#E3E3E3"
PALETTE = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", GREY)

TITLE_SIZE = 11
LABEL_SIZE = 10
NOTE_SIZE = 9

UPRIGHT = ("normal", "normal", 400)  # style, stretch and weight of a font: of others matplotlib would warn
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


def draw_signal(axes: Axes, signal: np.ndarray, left: float, top: float) -> None:
    """Draws `signal: [length, channel]` in [0, 1] as a cell of 1 by 1, a line each channel, `axes` growing downwards."""
    axes.add_patch(Rectangle((left, top), 1, 1, facecolor="white", edgecolor=FAINT, linewidth=0.5))
    across = left + np.linspace(0, 1, len(signal)) if len(signal) > 1 else np.full(1, left + 0.5)
    axes.plot(across, top + 0.95 - 0.9 * signal, color="black", linewidth=0.4)


class Lettering:
    """Names as they can be drawn, and what to draw them with.

    Matplotlib's own font knows Latin, Greek, Cyrillic and some more. For other characters an installed font is taken that
    has them; what none has is drawn as its code, such as \\u72d7, where matplotlib would draw an empty box.

    Args:
      names: all that are to be drawn.
    """

    def __init__(self, names: Iterable[str]):
        lacking = {c for name in names for c in _composed(name)}
        self.families = ["sans-serif"]  # in the order in which matplotlib looks for a character
        lacking -= _had_by(font_manager.findfont(FontProperties(family=self.families)), lacking)
        upright = [f for f in font_manager.fontManager.ttflist if (f.style, f.stretch, f.weight) == UPRIGHT]
        # A font of last resort has a box for everything.
        others = {font.name for font in upright if lacking and "lastresort" not in font.name.lower().replace(" ", "")}
        for family in sorted(others):
            if found := _had_by(font_manager.findfont(FontProperties(family=family)), lacking):
                self.families.append(family)
                lacking -= found
            if not lacking:
                break
        self._lacking = lacking

    def short(self, name: str, length: int | None = NAME_LENGTH) -> str:
        """A name as it is drawn, without what matplotlib would take for mathematics, cut at its front where it is long.

        Args:
          name: one of those that were announced.
          length: the most characters; None: as many as there are.
        """
        pieces = [c.encode("unicode_escape").decode() if c in self._lacking else c for c in _composed(name)]
        if length is not None and sum(map(len, pieces)) > length:
            room, kept = length - 1, []
            for piece in reversed(pieces):
                if (room := room - len(piece)) < 0:
                    break
                kept.append(piece)
            pieces = ["…", *reversed(kept)]
        return "".join(pieces).replace("$", r"\$")


def _composed(name: str) -> str:
    """A name with escapes for what does not show, and each letter with its accents as one character where there is one."""
    return unicodedata.normalize("NFC", shown(name))


def _had_by(path: str, characters: Collection[str]) -> set[str]:
    """Those of the characters that a font has; none if it cannot be read or is of pictures of one size."""
    try:
        font = font_manager.get_font(path)
        return {c for c in characters if font.scalable and font.get_char_index(ord(c))}
    except (OSError, RuntimeError):
        return set()


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


def pdf(figure: Figure) -> bytes:
    """`figure` as a PDF, its text as text in fonts that are part of the file (TrueType, as journals ask for)."""
    stream = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):
        # Without the moment and the name of the software, equal figures are equal files.
        figure.savefig(stream, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    """`figure` as an SVG, its text as text in matplotlib's own font, the characters of which that it needs are in the file."""
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "metarun"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    properties = FontProperties(family=["sans-serif"])
    font = base64.b64encode(_subset(font_manager.findfont(properties), text)).decode()
    family = font_manager.get_font(font_manager.findfont(properties)).family_name
    face = f"@font-face {{ font-family: '{family}'; src: url(data:font/woff;base64,{font}) format('woff'); }}"
    # The first style sheet of the file is matplotlib's own.
    return text.replace('<style type="text/css">', f'<style type="text/css">{face}\n', 1).encode("utf-8")


def _subset(path: str, text: str) -> bytes:
    """The characters of `text` out of a font, as WOFF."""
    from fontTools import subset  # what only an SVG needs

    options = subset.Options(flavor="woff", notdef_outline=True, layout_features=["kern"], hinting=False)
    options.drop_tables += ["FFTM"]  # when the font was made, of which a subset knows nothing
    subsetter, stream = subset.Subsetter(options), io.BytesIO()
    subsetter.populate(text=text)
    with subset.load_font(path, options) as font:
        subsetter.subset(font)
        subset.save_font(font, stream, options)
    return stream.getvalue()

"""A picture of a data set: some classes of each split, and how many there are."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.data.class_bank import SplitBank
from metarun.data.decoding import NEARLY
from metarun.errors import DataError, some
from metarun.report.figure import NOTE_SIZE, TITLE_SIZE, Lettering, draw_signal, save

CLASSES_SHOWN, IMAGES_SHOWN = 8, 10
GAP = 2  # pixels between images
SIGNAL_PITCH = 1.08  # from one signal to the next, which is 1 by 1
CELL_INCHES = 0.55
NAME_INCHES = 1.6
NEARLY_ALL = 0.99  # of the values of a class, from where on it is said


def contact_sheet(loaded: SplitBank, output: Path) -> None:
    """Draws the first images or signals of some classes of each split, evenly spread over it, as a PNG with counts.

    Raises:
      DataError: the examples are neither.
      MetarunError: `output` cannot be written.
    """
    shape = loaded.bank.images.shape[1:]
    if len(shape) != 2 and not (len(shape) == 3 and shape[2] in (1, 3)):
        raise DataError(
            f"Examples of shape {list(shape)} are not drawn: images of 1 or 3 channels are, and signals, [length, channel]."
        )
    save(draw_contact_sheet(loaded), output)


def draw_contact_sheet(loaded: SplitBank) -> Figure:
    """Returns the figure of `contact_sheet`, one axes a split."""
    shown = _shown(loaded)
    heights = [len(its) + 1 for its in shown.values()]
    figure = Figure(
        figsize=(NAME_INCHES + IMAGES_SHOWN * CELL_INCHES, sum(heights) * CELL_INCHES), layout="constrained"
    )
    places = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).flatten()
    for axes, (split, its) in zip(places, shown.items(), strict=True):
        count = sum(int(loaded.bank.count[c]) for c in loaded.classes[split])
        _, classes, examples = loaded.nouns
        title = f"{split}: {len(loaded.classes[split]):,} {classes}, {count:,} {examples}"
        axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
        pitch = _draw(axes, loaded, its)
        letters = Lettering(loaded.names[c] for c in its)
        names = [letters.short(loaded.names[c]) for c in its]
        places_of_names = [(row + 0.5) * pitch for row in range(len(its))]
        axes.set_yticks(places_of_names, names, fontsize=NOTE_SIZE, family=letters.families)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def _draw(axes: Axes, loaded: SplitBank, classes: list[int]) -> float:
    """Draws a row for each class, and returns the height of a row."""
    if loaded.bank.images.ndim == 4:
        sheet = _sheet(loaded, classes)
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        return sheet.shape[0] / len(classes)
    shown = [_images(loaded, c) for c in classes]
    low, high = min(its.min() for its in shown), max(its.max() for its in shown)
    for row, its in enumerate(shown):
        for column, signal in enumerate((its - low) / max(high - low, 1e-9)):
            draw_signal(axes, signal, column * SIGNAL_PITCH, row * SIGNAL_PITCH)
    axes.set(xlim=(0, IMAGES_SHOWN * SIGNAL_PITCH), ylim=(len(classes) * SIGNAL_PITCH, 0), aspect="equal")
    return SIGNAL_PITCH


def blank_in_words(loaded: SplitBank) -> str | None:
    """Says which of the classes shown are nearly all black or nearly all white, and what to do; None where none is, or
    where they are no images."""
    if loaded.bank.images.dtype != np.uint8:
        return None
    tones: dict[str, list[str]] = {"black": [], "white": []}
    classes = [c for its in _shown(loaded).values() for c in its]
    for c in classes:
        values = _images(loaded, c)
        shares = {"black": np.mean(values < NEARLY), "white": np.mean(values >= 256 - NEARLY)}
        for tone, share in shares.items():
            if share >= NEARLY_ALL:
                tones[tone].append(loaded.names[c])
    said = [
        f"{len(names)} of the {len(classes)} classes shown are nearly all {tone}: {some(names)}."
        for tone, names in tones.items()
        if names
    ]
    if not said:
        return None
    return (
        f"{' '.join(said)} If their files are not: of grey pictures of more than 8 bits, dataset.range says what is "
        "black and what is white; those of 8 bits have to use all 256 levels, and transparency is put on white."
    )


def _shown(loaded: SplitBank) -> dict[str, list[int]]:
    """The classes that are shown, of each split."""
    return {split: _spread(its, CLASSES_SHOWN) for split, its in loaded.classes.items()}


def _images(loaded: SplitBank, c: int) -> np.ndarray:
    """The images that are shown of a class."""
    first, count = int(loaded.bank.first[c]), int(loaded.bank.count[c])
    return np.asarray(loaded.bank.images[first : first + min(count, IMAGES_SHOWN)])


def _sheet(loaded: SplitBank, classes: list[int]) -> np.ndarray:
    """`[rows, columns, 3]` or, of grey images, `[rows, columns]` uint8, white where there is no image."""
    height, width, channels = loaded.bank.images.shape[1:]
    size = (len(classes) * (height + GAP), IMAGES_SHOWN * (width + GAP), channels)
    sheet = np.full(size, 255, np.uint8)
    shown = [_images(loaded, c) for c in classes]
    if loaded.bank.images.dtype != np.uint8:  # by the least and the greatest value of what is shown
        low, high = min(its.min() for its in shown), max(its.max() for its in shown)
        shown = [(255 * ((its - low) / max(high - low, 1e-9))).astype(np.uint8) for its in shown]
    for row, its in enumerate(shown):
        for column, image in enumerate(its):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet[top : top + height, left : left + width] = image
    return sheet.squeeze(2) if channels == 1 else sheet


def _spread(classes, most: int) -> list[int]:
    places = np.unique(np.linspace(0, len(classes) - 1, min(most, len(classes))).round().astype(int))
    return [classes[place] for place in places]

"""A body that moves, moment by moment, from the side: an episode a row, as it would be cut from a film."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from metarun.report.figure import FAINT, GREY, LABEL_SIZE, NOTE_SIZE, TITLE_SIZE, VERMILION, save
from metarun.report.paths import episodes

_TASKS = 2  # that are drawn, of different captions if there are such
_ROWS = 4  # of a task: the first and the last episodes
_MOMENTS = 6
_WIDTH = 1.75  # of a picture, in inches
_ASIDE = np.array([0.3, 0.25])  # where what lies farther away, by a metre, is drawn
_LIGHTEST, _DARKEST = 0.35, 0.9  # of the colour map, from the farthest limb to the nearest
_MARGIN = 0.15  # metres around the body


def strip(
    captions: Sequence[str],
    limbs: np.ndarray,
    live: np.ndarray,
    ended: np.ndarray,
    output: Path,
    *,
    radii: np.ndarray,
    seconds: float,
    of: str,
) -> None:
    """Draws what a learner does with a body, as a PNG: an episode a row, moments in columns.

    Pictures follow the body along; posts in the ground stand still, a metre apart, and that of the start is marked.

    Args:
      captions: what each task asks.
      limbs: before each action, the ends of the limbs in metres, `[tasks, stages, length, n, 2, 3]`.
      live: `[tasks, stages, length]` bool, whether the stage still ran.
      ended: likewise, whether an episode ended with the action.
      output: the PNG to write.
      radii: of the limbs, `[n]`.
      seconds: of a step.
      of: what one row is of, such as "episode" or "inner step".

    Raises:
      MetarunError: `output` cannot be written.
    """
    save(draw_strip(captions, limbs, live, ended, radii=radii, seconds=seconds, of=of), output)


def draw_strip(
    captions: Sequence[str],
    limbs: np.ndarray,
    live: np.ndarray,
    ended: np.ndarray,
    *,
    radii: np.ndarray,
    seconds: float,
    of: str,
) -> Figure:
    """Returns the figure of `strip`."""
    different = list({caption: number for number, caption in reversed(list(enumerate(captions)))}.values())
    shown = sorted(different)[:_TASKS]
    films = [_rows(episodes(limbs[task], live[task], ended[task]), of) for task in shown]
    drawn = [_seen(piece) for film in films for _, piece in film]
    # One size of picture fits every pose of the body around its middle.
    half = max(np.abs(ends[..., 0] - _middle(ends)[:, None, None]).max() for ends in drawn) + radii.max() + _MARGIN
    top = max(ends[..., 1].max() for ends in drawn) + radii.max() + _MARGIN
    steps = max(len(ends) for ends in drawn)
    digits = 1 if steps * seconds > 1 else 2
    moments = np.linspace(0, steps - 1, _MOMENTS).round().astype(int)
    bottom = min(-0.25, min(ends[..., 1].min() for ends in drawn) - radii.max())
    height = _WIDTH * (top - bottom) / (2 * half)
    rows = sum(len(film) for film in films)
    figure = Figure(
        figsize=(_MOMENTS * _WIDTH + 1.2, rows * (height + 0.12) + 0.45 * len(films) + 0.3), layout="constrained"
    )
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    parts = figure.subfigures(len(films), 1, squeeze=False, height_ratios=[len(film) for film in films])[:, 0]
    for part, task, film in zip(parts, shown, films, strict=True):
        part.suptitle(captions[task], x=0.005, ha="left", fontsize=TITLE_SIZE)
        places = part.subplots(len(film), _MOMENTS, squeeze=False)
        for row, (name, piece) in zip(places, film, strict=True):
            ends = _seen(piece)
            middle = _middle(ends)
            length = max(len(ends) - 1, 1)
            velocity = round(float(middle[-1] - middle[0]) / (length * seconds), 2) + 0.0  # no minus before a zero
            # Of an episode that ended early, the picture after its last moment is of its end.
            last = np.searchsorted(moments, len(ends) - 1)
            for number, (axes, moment) in enumerate(zip(row, moments, strict=True)):
                axes.set_xlim(-half, half)
                axes.set_ylim(bottom, top)
                axes.set_aspect("equal")
                axes.set_axis_off()
                if number <= last:
                    now = min(moment, len(ends) - 1)
                    _draw(axes, ends[now], piece[now, :, :, 1].mean(1), radii, middle[now], middle[0])
            row[0].text(0, 1, f"{name}: {velocity:+.2f} m/s", transform=row[0].transAxes, va="top", fontsize=NOTE_SIZE)
            if length + 1 < steps:
                row[-1].text(
                    1,
                    1,
                    f"ended after {len(ends) * seconds:.1f} s",
                    transform=row[-1].transAxes,
                    va="top",
                    ha="right",
                    fontsize=NOTE_SIZE,
                    color=VERMILION,
                )
        if part is parts[-1]:
            for axes, moment in zip(places[-1], moments, strict=True):
                axes.text(
                    0.5,
                    -0.02,
                    f"{moment * seconds:.{digits}f} s",
                    transform=axes.transAxes,
                    va="top",
                    ha="center",
                    fontsize=LABEL_SIZE,
                    color=GREY,
                )
    return figure


def _rows(pieces: list[np.ndarray], of: str) -> list[tuple[str, np.ndarray]]:
    """Names and limbs of the episodes that are drawn."""
    first = 0 if of == "inner step" else 1
    name = "inner step" if of == "inner step" else "episode"
    named = [(f"{name} {number + first}", piece) for number, piece in enumerate(pieces)]
    return named if len(named) <= _ROWS else [*named[: _ROWS // 2], *named[-_ROWS // 2 :]]


def _seen(limbs: np.ndarray) -> np.ndarray:
    """`[..., 3]` -> `[..., 2]`: from the side, a little from above, so that the legs of an ant can be told apart."""
    return limbs[..., [0, 2]] + limbs[..., 1:2] * _ASIDE


def _middle(ends: np.ndarray) -> np.ndarray:
    """Of a body at each moment, `[length]`, along the ground."""
    return ends[..., 0].mean((1, 2))


def _draw(axes: Axes, ends: np.ndarray, depth: np.ndarray, radii: np.ndarray, middle: float, start: float) -> None:
    """A pose, in a picture whose centre is at `middle`, with the ground and its posts."""
    left, right = axes.get_xlim()
    axes.axhspan(axes.get_ylim()[0], 0, color=FAINT, linewidth=0)
    for post in range(int(np.ceil(left + middle - start)), int(np.floor(right + middle - start)) + 1):
        mark = VERMILION if post == 0 else GREY
        axes.plot([post + start - middle] * 2, [-0.1, 0], color=mark, linewidth=1.2)
        if left + 0.15 < post + start - middle < right - 0.15:  # where its name has room
            axes.text(post + start - middle, -0.12, f"{post} m", ha="center", va="top", fontsize=6, color=mark)
    order = np.argsort(-depth, kind="stable")
    nearness = np.linspace(_LIGHTEST, _DARKEST, len(order)) if np.ptp(depth) > 0.01 else np.full(len(order), 0.7)
    outlines = [outline(ends[limb] - [middle, 0], radii[limb]) for limb in order]
    axes.add_collection(
        PolyCollection(outlines, facecolors=colormaps["Blues"](nearness), edgecolors="white", linewidths=0.4)
    )


def outline(ends: np.ndarray, radius: float) -> np.ndarray:
    """The outline `[points, 2]` of a capsule in the plane, from its `ends: [2, 2]`; of a circle where these are one."""
    along = ends[1] - ends[0]
    angle = np.arctan2(along[1], along[0]) + np.linspace(np.pi / 2, 3 * np.pi / 2, 12)
    cap = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([ends[0] + cap, ends[1] - cap])

"""Paths in the plane, episode by episode, to goals that had to be found."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metarun.report.figure import GREY, NOTE_SIZE, VERMILION, panels, quiet, save

_LIGHTEST, _DARKEST = 0.25, 0.95  # of the colour map


def paths(
    goals: np.ndarray, positions: np.ndarray, live: np.ndarray, ended: np.ndarray, output: Path, *, of: str
) -> None:
    """Draws the paths of a learner, a panel a task, as a PNG; the later a path, the darker.

    Args:
      goals: `[tasks, 2]`.
      positions: before each action, `[tasks, stages, length, 2]`.
      live: `[tasks, stages, length]` bool, whether the stage still ran.
      ended: likewise, whether an episode ended with the action.
      output: the PNG to write.
      of: what one path is of, such as "episode" or "inner step".

    Raises:
      MetarunError: `output` cannot be written.
    """
    save(draw_paths(goals, positions, live, ended, of=of), output)


def draw_paths(goals: np.ndarray, positions: np.ndarray, live: np.ndarray, ended: np.ndarray, *, of: str) -> Figure:
    """Returns the figure of `paths`."""
    figure, places = panels(len(goals), width=3.0, height=3.0)
    names: dict[str, Line2D] = {}
    for number, (axes, goal) in enumerate(zip(places, goals, strict=True)):
        pieces = episodes(positions[number], live[number], ended[number])
        quiet(axes, f"task {number + 1}")
        axes.set_aspect("equal")
        for k, piece in enumerate(pieces):
            shade = _LIGHTEST + (_DARKEST - _LIGHTEST) * k / max(len(pieces) - 1, 1)
            first = k if of == "inner step" else k + 1
            (line,) = axes.plot(*piece.T, color=colormaps["Blues"](shade), linewidth=1.4)
            names.setdefault(f"{of} {first}", line)
        (start,) = axes.plot(*pieces[0][0], "o", color=GREY, markersize=4)
        (mark,) = axes.plot(*goal, "*", color=VERMILION, markersize=11, zorder=3)
    legend = {**dict(list(names.items())[:8]), "start": start, "goal": mark}
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=NOTE_SIZE
    )
    return figure


def episodes(positions: np.ndarray, live: np.ndarray, ended: np.ndarray) -> list[np.ndarray]:
    """The positions of each episode, `[steps, 2]`, of stages `[stages, length, 2]`, in their order."""
    pieces = []
    for stage, lives, ends in zip(positions, live, ended, strict=True):
        cuts = np.flatnonzero(ends) + 1
        pieces += [piece for piece in np.split(stage[lives], cuts[cuts < lives.sum()]) if len(piece)]
    return pieces

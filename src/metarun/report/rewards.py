"""How the rewards of a trial came about, drawn beside those of agents that were not learnt."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarun.report.figure import BLUE, GREY, LABEL_SIZE, quiet, save

# Okabe and Ito's, but for the learner's blue and for black.
_OTHERS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", GREY)

FEW = 30  # points of a curve that are marked one by one


def reward_curves(curves: Mapping[str, Any], output: Path) -> None:
    """Draws the mean reward of each episode or step of a trial, or the return after each inner step, as a PNG.

    Args:
      curves: "over": what they are over; and by name, "learner" first, lists of mean rewards.
      output: the PNG to write.

    Raises:
      MetarunError: `output` cannot be written.
    """
    save(draw_reward_curves(curves), output)


def draw_reward_curves(curves: Mapping[str, Any]) -> Figure:
    """Returns the figure of `reward_curves`, each line named at its end."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = {name: curve for name, curve in curves.items() if name != "over"}
    adapts = curves["over"] == "inner step"
    quiet(axes, "Mean return after each inner step" if adapts else f"Mean reward of each {curves['over']} of a trial")
    first = 0 if adapts else 1  # before the first inner step there is a return, too
    others = cycle(_OTHERS)
    for name, curve in lines.items():
        own = name == "learner"
        look: dict[str, Any]
        look = {"color": BLUE, "linewidth": 2.4, "zorder": 3} if own else {"color": next(others), "linewidth": 1.2}
        marker = "." if len(curve) <= FEW else None
        axes.plot(first + np.arange(len(curve)), curve, label=name.replace("_", " "), marker=marker, **look)
    axes.set_xlabel(curves["over"], fontsize=LABEL_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=LABEL_SIZE)
    return figure

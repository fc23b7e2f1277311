"""What a search has found, as a picture: how it went on, which parameters matter, and what each of them does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from metarun.report.figure import BLUE, LABEL_SIZE, VERMILION, panels, quiet, save

_PARAMETERS = 6  # that get a panel, the most important first
_WIDE = 30  # from this ratio on, positive values are drawn on a logarithmic scale


class Trial(NamedTuple):
    """A trial of a search.

    Attributes:
      number: in its study.
      value: its best validation, or the last before it was pruned; None where there is none.
      state: "complete", "pruned", or another word for one without a value.
      params: the settings that were tried.
    """

    number: int
    value: float | None
    state: str
    params: Mapping[str, Any]


def picture(trials: Sequence[Trial], importance: Mapping[str, float], output: Path, *, maximize: bool) -> None:
    """Draws a search as a PNG.

    Args:
      trials: of the study, one of them complete.
      importance: parameter -> its share; may be empty.
      output: the file to write.
      maximize: whether a higher value is a better one.

    Raises:
      MetarunError: `output` cannot be written.
    """
    tried = [trial for trial in trials if trial.value is not None]
    varied = dict.fromkeys([*importance, *(name for trial in tried for name in trial.params)])
    names = list(varied)[:_PARAMETERS]
    figure, axes = panels(1 + bool(importance) + len(names), width=4, height=3)
    _draw_history(axes[0], tried, maximize)
    if importance:
        _draw_importance(axes[1], importance)
    for name, each in zip(names, axes[1 + bool(importance) :], strict=True):
        _draw_parameter(each, name, tried)
    save(figure, output)


def _draw_history(axes: Axes, trials: Sequence[Trial], maximize: bool) -> None:
    quiet(axes, "Validation")
    ended = [trial for trial in trials if trial.state == "complete"]
    better = np.maximum if maximize else np.minimum
    bests = better.accumulate(np.array([trial.value for trial in ended], float))
    axes.step([trial.number for trial in ended], bests, where="post", color=VERMILION, label="best so far")
    _scatter(axes, trials, [trial.number for trial in trials])
    axes.set_xlabel("trial", fontsize=LABEL_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(frameon=False, fontsize=LABEL_SIZE)


def _draw_importance(axes: Axes, importance: Mapping[str, float]) -> None:
    quiet(axes, "Importance")
    names = list(importance)[::-1]
    axes.barh(names, [importance[name] for name in names], color=BLUE)
    axes.set_xlabel("share", fontsize=LABEL_SIZE)


def _draw_parameter(axes: Axes, name: str, trials: Sequence[Trial]) -> None:
    quiet(axes, name)
    own = [trial for trial in trials if name in trial.params]
    values = [trial.params[name] for trial in own]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) / min(values) >= _WIDE:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=all(isinstance(value, int) for value in values)))
    else:
        values = [str(value) for value in values]
    _scatter(axes, own, values)


def _scatter(axes: Axes, trials: Sequence[Trial], places: Sequence[Any]) -> None:
    """Complete trials as dots, pruned ones as rings."""
    values = np.array([trial.value for trial in trials], float)
    # Text gets its places in the order of all, not of the complete ones alone.
    axes.plot(places, values, linestyle="none")
    for state, filled in (("complete", "full"), ("pruned", "none")):
        chosen = [place for place, trial in enumerate(trials) if trial.state == state]
        if chosen:
            own = [places[place] for place in chosen]
            axes.plot(own, values[chosen], "o", color=BLUE, markersize=4, fillstyle=filled, label=state)

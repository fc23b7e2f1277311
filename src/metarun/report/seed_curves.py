"""Learning curves of replicates as one: their mean over seeds, and its interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metarun.report.collection import Record
from metarun.report.replicates import Replicates

_POINTS = 120  # of a curve: more than a chart has room for


class Band(NamedTuple):
    """A curve over seeds.

    Attributes:
      steps: `[n]`, ascending.
      mean: `[n]`, over seeds.
      half: half the width of the 95% interval of `mean` over seeds, by Student's t, `[n]`; None of a single seed.
    """

    steps: np.ndarray
    mean: np.ndarray
    half: np.ndarray | None


def curve_of(record: Record, part: str) -> list[tuple[float, float]]:
    """The curve of a run's metric, thinned; empty where there is none.

    Args:
      record: the run.
      part: "train" or "val".
    """
    metric = record.result["metric"] if record.result else None
    names = [f"{part}/query/{metric}", f"{part}/{metric}"]
    if metric is None:  # which a run that has not ended does not say
        names = [f"{part}/{between}{name}" for name in ("accuracy", "reward") for between in ("query/", "")]
    return _thinned(next((record.curve[name] for name in names if name in record.curve), []))


def curve_over_seeds(group: Replicates, part: str) -> Band | None:
    """The curve of replicates, see `over_seeds`; None where none has one of two points at least."""
    curves = [curve for record in group.records if len(curve := curve_of(record, part)) > 1]
    return over_seeds(curves) if curves else None


def over_seeds(curves: Sequence[Sequence[tuple[float, float]]]) -> Band | None:
    """The mean of some curves, one of each seed, where all of them are known; None where that is nowhere.

    They need not have the same steps: between two of its own, a curve is a straight line. The steps are those of the curve
    with the fewest.
    """
    arrays = [np.asarray(curve, dtype=float) for curve in curves]
    first, last = max(each[0, 0] for each in arrays), min(each[-1, 0] for each in arrays)
    steps = min(arrays, key=len)[:, 0]
    steps = steps[(steps >= first) & (steps <= last)]
    if not len(steps):
        return None
    values = np.stack([np.interp(steps, each[:, 0], each[:, 1]) for each in arrays])
    mean = (values / len(values)).sum(0)  # each by its own share: a sum of large numbers would be none
    if len(values) == 1:
        return Band(steps, mean, None)
    from scipy.special import stdtrit  # slow to load, and of several seeds alone

    with np.errstate(over="ignore"):
        half = stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / np.sqrt(len(values))
    return Band(steps, mean, half)


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` of them, the last always, as means of equal numbers."""
    size = -(-len(points) // _POINTS) or 1
    blocks = [points[at : at + size] for at in range(0, len(points), size)]
    # Each by its own share: a sum of large numbers would be none.
    return [(block[-1][0], float(f"{sum(value / len(block) for _, value in block):.4g}")) for block in blocks]

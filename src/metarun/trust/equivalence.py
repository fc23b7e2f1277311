"""Whether two numbers are the same: two one-sided tests of equivalence, and what would decide where they do not.

A difference that is merely not significant says nothing: a test on few tasks finds none. A result is *reproduced* where its
difference from the published one is shown to be smaller than a margin, *not reproduced* where it is shown to be larger, and
*undecided* between. Each has a chance of error of at most 2.5% on either side of the margin, for a 95% interval of the
difference has to lie within, or without.

References:
  Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987. The degrees of freedom:
  Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
_NORMAL = 1.96  # by which results state their 95% intervals
_MOST = 1000  # as many times the tasks, or as many seeds, are more than anybody will run


class Ours(NamedTuple):
    """What we have found of a cell.

    Attributes:
      values: of each seed, `[seeds]`, all on the same test tasks.
      ci95: half the width of the 95% interval over tasks, the widest of the seeds'.
      num_tasks: over which it is.
    """

    values: Sequence[float]
    ci95: float
    num_tasks: int


class Verdict(NamedTuple):
    """How our result stands to a published one.

    Attributes:
      verdict: `REPRODUCED`, `NOT_REPRODUCED` or `UNDECIDED`.
      value, ci95: ours, the mean over seeds, and half the width of its 95% interval over tasks and seeds.
      difference, difference_ci95: ours less the published, likewise.
      more_tasks: how many more test tasks would decide if the values stayed as they are; None: none would, or no need.
      more_seeds: likewise.
    """

    verdict: str
    value: float
    ci95: float
    difference: float
    difference_ci95: float
    more_tasks: int | None
    more_seeds: int | None


def verdict(
    ours: Ours, published: float, published_ci95: float | None, margin: float, *, forecast: bool = True
) -> Verdict:
    """Tests our result for equivalence with a published one.

    The difference `mean over k seeds - published` has the variance `T + S / k + S + P`: T of our test tasks, which all
    seeds share; S of a single seed, which the published value is also subject to; P of the published value's tasks. With
    one seed, S is unknown and left out: the verdict is then on this run alone. A published value without an interval is
    taken to be as uncertain over tasks as ours.

    Args:
      ours: what we have found.
      published: the published value.
      published_ci95: half the width of its 95% interval over tasks; None if it has none.
      margin: the difference that does not matter, positive.
      forecast: whether to find what would decide where it is undecided.
    """
    spread = _spread(ours, published_ci95, len(ours.values), 1)
    value = float(np.mean(ours.values))
    difference, half = value - published, spread.half
    found = _decided(difference, half, margin)
    more_tasks = more_seeds = None
    if found == UNDECIDED and forecast:
        times = _least(lambda n: _decided(difference, _spread(ours, published_ci95, None, n).half, margin))
        more_tasks = None if times is None else math.ceil((times - 1) * ours.num_tasks)
        if len(ours.values) > 1:
            seeds = _fewest(
                range(len(ours.values) + 1, _MOST),
                lambda k: _decided(difference, _spread(ours, published_ci95, k, 1).half, margin),
            )
            more_seeds = None if seeds is None else seeds - len(ours.values)
    return Verdict(found, value, spread.ours, difference, half, more_tasks, more_seeds)


def over_seeds(ours: Ours) -> tuple[float, float]:
    """Our value, the mean over seeds, and half the width of its 95% interval over tasks and seeds."""
    return float(np.mean(ours.values)), _spread(ours, None, None, 1).ours


def standard_error(values: Any) -> float:
    """s / sqrt(n) of an array `values: [n]`, with s the sample standard deviation; NaN of a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan


def interval_said(ci95: float | None, digits: str, scale: float = 1, unit: str = "") -> str:
    """ " ± " and half the width of an interval, or "" where there is none: over one task (None or NaN)."""
    return "" if ci95 is None or math.isnan(ci95) else f" ± {scale * ci95:{digits}}{unit}"


def difference_said(value: float, ci95: float) -> str:
    """A difference and half the width of its interval, with as many decimals as give the latter two digits.

    Over one task (NaN) there is no interval, which is said.
    """
    if math.isnan(ci95) and not math.isnan(value):
        return f"{value:+z.2f} (one task, no interval)"
    decimals = max(0, 1 - math.floor(math.log10(ci95))) if 0 < ci95 < math.inf else 2
    return f"{value:+z.{decimals}f} ± {ci95:.{decimals}f}"


class _Spread(NamedTuple):
    """Half the widths of 95% intervals: of the difference, and of our value alone."""

    half: float
    ours: float


def _spread(ours: Ours, published_ci95: float | None, seeds: int | None, times: float) -> _Spread:
    """The intervals with another number of seeds (None: as many) and `times` the tasks, if the variances stay."""
    seeds = len(ours.values) if seeds is None else seeds
    tasks = (ours.ci95 / _NORMAL) ** 2 / times
    theirs = (ours.ci95 / _NORMAL) ** 2 if published_ci95 is None else (published_ci95 / _NORMAL) ** 2
    seed = float(np.var(ours.values, ddof=1)) if len(ours.values) > 1 else 0.0

    def half(of_tasks: float, of_seeds: float) -> float:
        variance = of_tasks + of_seeds
        if not of_seeds:
            return _NORMAL * math.sqrt(variance)
        from scipy.special import stdtrit  # slow to load, and of several seeds alone

        ratio = variance / of_seeds  # before it is squared: the square of a small variance is 0
        freedom = ratio * ratio * (seeds - 1)
        return float(stdtrit(freedom, 0.975)) * math.sqrt(variance)

    return _Spread(half(tasks + theirs, seed + seed / seeds), half(tasks, seed / seeds))


def _decided(difference: float, half: float, margin: float) -> str:
    """Both one-sided tests at 2.5%, which is where the 95% interval of the difference lies."""
    if abs(difference) + half < margin:
        return REPRODUCED
    return NOT_REPRODUCED if abs(difference) - half > margin else UNDECIDED


def _least(verdict_at) -> float | None:
    """The smallest factor in (1, _MOST] from which on `verdict_at` decides, to one part in a hundred."""
    return _fewest(np.geomspace(1.01, _MOST, 700).tolist(), verdict_at)


def _fewest(numbers, verdict_at):
    return next((number for number in numbers if verdict_at(number) != UNDECIDED), None)


def paired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The mean difference `second - first` over the same tasks, and half the width of its 95% interval.

    What makes a task easy or hard for both falls out, so that it is far narrower than that of two separate tests.

    Args:
      first, second: the metric of each task, `[n]`, of the same tasks; of one, the width is NaN.
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return float(difference.mean()), _NORMAL * standard_error(difference)


def unpaired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The same over tasks of their own, `[n]` and `[m]`."""
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    error = math.hypot(*(standard_error(values) for values in (first, second)))
    return float(second.mean() - first.mean()), _NORMAL * error

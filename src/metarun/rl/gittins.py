"""The Gittins index of a Bernoulli arm, computed."""

from functools import cache

import numpy as np

_REWARDS = 1001  # of the sure arm that an arm is compared with, evenly in [0, 1]
_AHEAD = 8  # discounted lives that are looked ahead, after which an arm counts as known


@cache
def bernoulli_index(discount: float, pulls: int) -> np.ndarray:
    """The index of an arm whose probability of a reward is Beta(a, b): the sure reward that is as good.

    For each reward r of a sure arm, the value of choosing at every step between it, forever after, and the arm is
      V(a, b) = max(r / (1 - discount), p (1 + discount V(a+1, b)) + (1 - p) discount V(a, b+1)),  p = a / (a + b),
    computed backwards from arms so well known that V = max(r, p) / (1 - discount). The index is the r at which the two
    are equal, between the points of a grid by linear interpolation.

    Args:
      discount: in (0, 1).
      pulls: by which the arm can have been tried.

    Returns:
      `[pulls + 1, pulls + 1]`, the index after that many rewards (row) and failures (column), from Beta(1, 1); NaN where
      they are more than `pulls` together.

    Source: Gittins 1979, Bandit Processes and Dynamic Allocation Indices; by calibration, Gittins, Glazebrook and Weber
    2011, Multi-armed Bandit Allocation Indices, section 8.4.
    """
    sure = np.linspace(0, 1, _REWARDS, dtype=np.float32)
    stop = sure / (1 - discount)
    index = np.full((pulls + 1, pulls + 1), np.nan)
    last = pulls + int(_AHEAD / (1 - discount)) + 2  # a + b
    p = np.arange(1, last, dtype=np.float32)[:, None] / last
    value = np.maximum(sure, p) / (1 - discount)  # row i: a = i + 1, b = last - a
    for total in range(last - 1, 1, -1):
        p = np.arange(1, total, dtype=np.float32)[:, None] / total
        going_on = p * (1 + discount * value[1:]) + (1 - p) * discount * value[:-1]
        value = np.maximum(stop, going_on)
        if total - 2 <= pulls:
            # Going on is better than stopping for small r only, and by less the larger r is.
            gain = going_on - stop
            right = np.maximum((gain > 0).sum(1), 1).clip(max=_REWARDS - 1)
            rows = np.arange(total - 1)
            above, below = gain[rows, right - 1], gain[rows, right]
            found = sure[right - 1] + above / (above - below) / (_REWARDS - 1)
            index[rows, total - 2 - rows] = found
    return index

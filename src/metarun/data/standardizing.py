"""Numbers brought to the mean 0 and the variance 1 of meta-training's."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

# none; each column of a row, or each channel of a signal, by itself; or all numbers alike.
KINDS = ("none", "feature", "global")
_CONSTANT = 1e-12  # spread over size below which a column has but one value, as far as rounding can tell


class Standard(NamedTuple):
    """What standardises: (value - shift) * factor.

    Attributes:
      shift, factor: float64, of one number or of one for each entry of the last axis.
    """

    shift: np.ndarray
    factor: np.ndarray

    def applied(self, rows: np.ndarray) -> np.ndarray:
        """`rows` standardised, float32."""
        return ((rows.astype(np.float64) - self.shift) * self.factor).astype(np.float32)


def as_lists(standard: Standard | None) -> list[list[float]] | None:
    """What JSON can hold of it, as in `types.DataSet`."""
    return None if standard is None else [part.tolist() for part in standard]


def standard_of(kind: str, blocks: Callable[[], Iterable[np.ndarray]]) -> Standard | None:
    """The mean and the standard deviation of some rows; None for the kind "none".

    Args:
      kind: one of `KINDS`.
      blocks: gives the rows in blocks `[n, *feature]`, each time it is called.

    Returns:
      What brings them to the mean 0 and the variance 1. A column of one value keeps its scale, and becomes 0.
    """
    if kind == "none":
        return None

    def mean(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total, number = np.zeros(1), 0
        for block in blocks():
            values = of(block.astype(np.float64)).reshape(-1, block.shape[-1])
            if kind == "global":
                values = values.reshape(-1, 1)
            total, number = total + values.sum(0), number + len(values)
        return total / number

    shift = mean(lambda values: values)
    deviation = np.sqrt(mean(lambda values: np.square(values - shift)))
    constant = deviation <= _CONSTANT * np.abs(shift)
    return Standard(shift, 1 / np.where(constant, 1, deviation))

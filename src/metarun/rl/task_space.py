"""Numbers that tasks are made of, of which meta-training, -validation and -test never share one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from metarun.types import Array

SPLITS = ("train", "val", "test")
CELLS = 2**19  # of each split: so few that numbers stay apart in float32, and so do their products and quantiles


def uniform(key: Array, split: str, shape: tuple[int, ...] = (), cells: int = CELLS) -> Array:
    """Numbers uniform in (0, 1), `[*shape]`, from a lattice whose points are dealt to the splits in turn.

    What has been sampled for one split cannot be sampled for another; the distribution is uniform to within the lattice.

    Args:
      key, split, shape: of the sample.
      cells: points that each split has; fewer where what is made of the numbers covers a small range.
    """
    cell = jax.random.randint(key, shape, 0, cells) * len(SPLITS) + SPLITS.index(split)
    return (cell.astype(jnp.float32) + 0.5) / (len(SPLITS) * cells)


def between(low: float, high: float) -> Callable[[Array, str], Array]:
    """Returns `(key, split) -> number`, uniform in (low, high), of a lattice whose points float32 tells apart there.

    Raises:
      ValueError: the range has no room for a point of each split.
    """
    apart = 4 * float(np.spacing(np.float32(max(abs(low), abs(high)))))
    cells = min(CELLS, int((high - low) / (len(SPLITS) * apart)))
    if cells < 1:
        raise ValueError(f"There are no three numbers between {low} and {high}.")
    return lambda key, split: low + (high - low) * uniform(key, split, cells=cells)


def normal(key: Array, split: str, shape: tuple[int, ...] = ()) -> Array:
    """Standard normal numbers, `[*shape]`: the quantiles of those of `uniform`."""
    return ndtri(uniform(key, split, shape))


def one_of(key: Array, split: str, number: int) -> Array:
    """A whole number in [0, number) from those that are `split`'s: every third.

    Raises:
      ValueError: there are fewer numbers than splits.
    """
    first = SPLITS.index(split)
    count = len(range(first, number, len(SPLITS)))
    if not count:
        raise ValueError(f"{number} tasks cannot be dealt to {len(SPLITS)} splits.")
    return first + len(SPLITS) * jax.random.randint(key, (), 0, count)

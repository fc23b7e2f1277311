"""Small tasks that a learner of any kind learns in seconds."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarun.types import Array, Split, Task

WAY, SHOT, QUERY_SHOT, SIZE, CLASSES = 3, 2, 3, 8, 12
_NOISE = 0.2


def of_patterns(key: Array, own_labels: bool = False) -> Task:
    """A task of `WAY` of `CLASSES` patterns of `SIZE` by `SIZE`, each input a pattern under noise, in random order.

    Args:
      key: it is drawn by.
      own_labels: whether labels are the patterns' numbers of all `CLASSES`, instead of the task's.
    """
    class_key, order_key, support_key, query_key = jax.random.split(key, 4)
    patterns = jax.random.uniform(jax.random.key(7), (CLASSES, SIZE, SIZE, 1))
    classes = jax.random.permutation(class_key, CLASSES)[:WAY]

    def split(key: Array, order_key: Array, n: int) -> Split:
        y = jax.random.permutation(order_key, jnp.tile(jnp.arange(WAY, dtype=jnp.int32), n))
        x = patterns[classes[y]] + _NOISE * jax.random.normal(key, (WAY * n, SIZE, SIZE, 1))
        return Split(x, classes[y] if own_labels else y)

    order_keys = jax.random.split(order_key)
    return Task(split(support_key, order_keys[0], SHOT), split(query_key, order_keys[1], QUERY_SHOT))


def of_lines(key: Array) -> Task:
    """A straight line through a few points of [-1, 1]: `x: [n, 1]`, `y: [n, 1]`."""
    line_key, support_key, query_key = jax.random.split(key, 3)
    slope, height = jax.random.normal(line_key, (2,))

    def split(key: Array, n: int) -> Split:
        x = jax.random.uniform(key, (n, 1), minval=-1.0)
        return Split(x, slope * x + height)

    return Task(split(support_key, WAY * SHOT), split(query_key, WAY * QUERY_SHOT))


@cache
def tasks(objective: str, own_labels: bool, number: int, seed: int) -> Any:
    """A `Task` of NumPy arrays with a leading axis `[number]`."""
    draw = partial(of_patterns, own_labels=own_labels) if objective == "classification" else of_lines
    keys = jax.random.split(jax.random.key(seed), number)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))

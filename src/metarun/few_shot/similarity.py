"""How alike two sets of vectors are, for methods that answer by comparing a query with what they have seen."""

import jax.numpy as jnp

from metarun.types import Array

_EPSILON = 1e-12  # added to a squared length, so that the direction of a zero vector has a gradient


def euclidean(x: Array, y: Array) -> Array:
    """-|x_i - y_j|^2 + |x_i|^2: `[n, size]`, `[m, size]` -> `[n, m]`.

    The term left out is the same for everything that x_i is compared with: no softmax or argmax over j sees it.
    """
    return 2 * x @ y.T - (y**2).sum(1)[None]


def cosine(x: Array, y: Array) -> Array:
    """Cosine of the angle between x_i and y_j: `[n, size]`, `[m, size]` -> `[n, m]`."""
    x, y = (a / jnp.sqrt((a**2).sum(1, keepdims=True) + _EPSILON) for a in (x, y))
    return x @ y.T


SIMILARITIES = {"euclidean": euclidean, "cosine": cosine}

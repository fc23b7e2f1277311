"""What rewards are to be expected, by a linear fit to a few rollouts."""

import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from metarun.types import Array

_RIDGE = 1e-5  # a small part of each feature's own size


def features(observations: Array) -> Array:
    """Observations, their squares, three powers of time and a constant: `[length, size]` -> `[length, 2 size + 4]`."""
    length = observations.shape[0]
    time = jnp.arange(length, dtype=observations.dtype)[:, None] / 100
    seen = jnp.clip(observations, -10, 10)
    return jnp.concatenate([seen, seen**2, time, time**2, time**3, jnp.ones_like(time)], 1)


def fitted_values(x: Array, targets: Array, weight: Array) -> Array:
    """The least-squares fit to `targets` by the features `x`, with a little ridge, at the same points.

    Args:
      x: `[n, features]`.
      targets: `[n]`.
      weight: `[n]`, 1 where a point counts, else 0.

    Returns:
      `[n]`.

    Source: Duan et al. 2016, Benchmarking Deep Reinforcement Learning for Continuous Control, section 4.
    """
    counted = x * weight[:, None]
    moments = counted.T @ x
    ridge = _RIDGE * (jnp.trace(moments) / x.shape[1] + 1)
    return x @ _solved(moments + ridge * jnp.eye(x.shape[1]), counted.T @ targets)


# One after the other: jaxlib 0.10 splits a batch over the threads that it runs on and waits for them, and batches of several
# devices of a CPU then wait for each other for ever.
_solved = sequential_vmap(jnp.linalg.solve)

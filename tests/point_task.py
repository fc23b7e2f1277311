"""Small tasks of points: classes are clusters, so that networks without convolutions can be tried on them."""

import jax
import jax.numpy as jnp

from metarun.types import Split, Task


def point_task(key, way=3, shot=2, query_shot=2, size=4):
    """x: `[n, size]`, y: `[n]`, support and query in random order; float64 under `jax.enable_x64`."""
    center_key, *split_keys = jax.random.split(key, 3)
    centers = 2 * jax.random.normal(center_key, (way, size))

    def split(key, n):
        order_key, noise_key = jax.random.split(key)
        y = jax.random.permutation(order_key, jnp.tile(jnp.arange(way, dtype=jnp.int32), n))
        return Split(centers[y] + 0.3 * jax.random.normal(noise_key, (way * n, size)), y)

    return Task(*(split(key, n) for key, n in zip(split_keys, (shot, query_shot), strict=True)))


def curve_task(key, shot=3, query_shot=4):
    """A regression: x: `[n, 1]`, y: `[n, 1]`."""
    x = jax.random.normal(key, (shot + query_shot, 1))
    y = jnp.sin(x)
    return Task(Split(x[:shot], y[:shot]), Split(x[shot:], y[shot:]))

"""Tasks of a few small inputs, for tests of methods."""

from functools import partial

import jax
import jax.numpy as jnp

from metarun.types import Split, Task


@partial(jax.jit, static_argnames=("way", "shot", "query_shot", "size"))
def vector_task(key, way=3, shot=2, query_shot=3, size=4, noise=0.5):
    """Classes are points with noise about them, in order: support labels 0, 1, 2, 0, 1, 2."""
    center_key, support_key, query_key = jax.random.split(key, 3)
    centers = jax.random.normal(center_key, (way, size))

    def split(key, n):
        y = jnp.tile(jnp.arange(way, dtype=jnp.int32), n)
        return Split(centers[y] + noise * jax.random.normal(key, (way * n, size)), y)

    return Task(split(support_key, shot), split(query_key, query_shot))


@partial(jax.jit, static_argnames=("way", "shot", "query_shot", "size"))
def image_task(key, way=3, shot=2, query_shot=3, size=8, noise=0.3):
    """Classes are noisy copies of a pattern each, `[size, size, 1]`."""
    task = vector_task(key, way, shot, query_shot, size * size, noise)
    return jax.tree.map(lambda x: x.reshape(-1, size, size, 1) if x.ndim == 2 else x, task)


def reordered_support(task, order):
    """The task with its support examples in another order."""
    return task._replace(support=jax.tree.map(lambda x: x[order], task.support))

"""A network whose answer is its parameters, whatever the input, so that a method on it has a closed form.

With two outputs the mean squared error of w to targets a is 1/2 |w - a|^2.
"""

import jax.numpy as jnp
import numpy as np

from metarun.types import Model, Split, Task

THETA, A, B = np.array([1.0, -2.0]), np.array([0.2, 0.4]), np.array([-1.0, 3.0])


def constant():
    return Model(
        init=lambda key, x: {"dense0": {"bias": jnp.array(THETA, x.dtype)}},
        apply=lambda params, x, reference=None: jnp.tile(params["dense0"]["bias"], (x.shape[0], 1)),
    )


def task_of(support_target=A, query_target=B):
    """Three support examples of one target and four queries of another, float64."""

    def split(n, target):
        return Split(jnp.zeros((n, 1), jnp.float64), jnp.tile(jnp.array(target, jnp.float64), (n, 1)))

    return Task(split(3, support_target), split(4, query_target))

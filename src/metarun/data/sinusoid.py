"""Sinusoid regression: a task distribution without images or classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metarun.data.episodes import masked_at
from metarun.data.task_sizes import differing, sizes_by_split
from metarun.types import DataSet, TaskSource


def sinusoid(
    *,
    shot: int | Sequence[int],
    query_shot: int,
    eval_query_shot: int | None = None,
    train_shot: int | Sequence[int] | None = None,
) -> DataSet:
    """y = A sin(x - phase) with A ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5].

    The distribution is continuous, so the three splits are the same and share no task.

    Args:
      shot: support points of a task; or the fewest and the most.
      query_shot: query points of a task in training.
      eval_query_shot: query points in evaluation; None: as in training.
      train_shot: the same in training; None: `shot`.

    Returns:
      A regression `DataSet`: `x: [n, 1]`, `y: [n, 1]`.

    Raises:
      ConfigError: for counts that are not whole numbers of at least 1.

    Source: Finn et al. 2017, section 5.1.
    """
    sizes = sizes_by_split(
        shot=shot, query_shot=query_shot, eval_query_shot=eval_query_shot, train_shot=train_shot, of_classes=False
    )

    def source(sizes):
        most = sizes.shot[1]

        def sample(data, key):
            size_key = jax.random.fold_in(key, 1)
            amplitude_key, phase_key, x_key = jax.random.split(key, 3)
            amplitude = jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0)
            phase = jax.random.uniform(phase_key, minval=0.0, maxval=jnp.pi)
            x = jax.random.uniform(x_key, (most + sizes.query_shot, 1), minval=-5.0, maxval=5.0)
            y = amplitude * jnp.sin(x - phase)
            return masked_at(most, x, y, sizes.drawn_masks(size_key))

        return TaskSource((), sample)

    protocol = {"name": "sinusoid", "amplitude": [0.1, 5.0], "phase": [0.0, "pi"], "x": [-5.0, 5.0]}
    evaluated = source(sizes["test"])
    return DataSet(
        source(sizes["train"]),
        evaluated,
        evaluated,
        "regression",
        1,
        protocol,
        varies=differing(sizes.values()),
    )

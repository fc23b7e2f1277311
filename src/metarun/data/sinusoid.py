"""Sinusoid regression: a task distribution without images or classes."""

import jax
import jax.numpy as jnp

from metarun.errors import positive_int
from metarun.types import DataSet, Split, Task, TaskSource


def sinusoid(
    *, shot: int, query_shot: int, eval_query_shot: int | None = None, train_shot: int | None = None
) -> DataSet:
    """y = A sin(x - phase) with A ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5].

    The distribution is continuous, so the three splits are the same and share no task.

    Args:
      shot: support points of a task.
      query_shot: query points of a task in training.
      eval_query_shot: query points in evaluation; None: as in training.
      train_shot: support points of a task in training; None: `shot`.

    Returns:
      A regression `DataSet`: `x: [n, 1]`, `y: [n, 1]`.

    Raises:
      ConfigError: for counts that are not whole numbers of at least 1.

    Source: Finn et al. 2017, section 5.1.
    """
    num_support = positive_int("shot", shot)
    num_train_support = num_support if train_shot is None else positive_int("train_shot", train_shot)
    num_query = positive_int("query_shot", query_shot)
    num_eval_query = num_query if eval_query_shot is None else positive_int("eval_query_shot", eval_query_shot)

    def source(num_support, num_query):
        def sample(data, key):
            amplitude_key, phase_key, x_key = jax.random.split(key, 3)
            amplitude = jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0)
            phase = jax.random.uniform(phase_key, minval=0.0, maxval=jnp.pi)
            x = jax.random.uniform(x_key, (num_support + num_query, 1), minval=-5.0, maxval=5.0)
            y = amplitude * jnp.sin(x - phase)
            return Task(Split(x[:num_support], y[:num_support]), Split(x[num_support:], y[num_support:]))

        return TaskSource((), sample)

    protocol = {"name": "sinusoid", "amplitude": [0.1, 5.0], "phase": [0.0, "pi"], "x": [-5.0, 5.0]}
    evaluated = source(num_support, num_eval_query)
    return DataSet(source(num_train_support, num_query), evaluated, evaluated, "regression", 1, protocol)

"""Regression of functions drawn from a Gaussian process, whose exact posterior is known."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metarun.data.episodes import masked_at
from metarun.data.task_sizes import TaskSizes, differing, sizes_by_split
from metarun.errors import positive_float, positive_int
from metarun.types import Array, DataSet, Split, Task, TaskSource

REACH = 2.0  # of every input


def gaussian_process(
    *,
    shot: int | Sequence[int],
    query_shot: int,
    eval_query_shot: int | None = None,
    inputs: int = 1,
    length_scale: float = 0.4,
    noise: float = 0.1,
) -> DataSet:
    """y = f(x) + noise, with f of mean 0 and covariance exp(-|x - x'|^2 / 2 length_scale^2), and x uniform in [-2, 2].

    The distribution is continuous, so the three splits are the same and share no task. Queries have noise too: no
    predictor errs by less than its variance.

    Args:
      shot: support points of a task; or the fewest and the most.
      query_shot: query points of a task in training.
      eval_query_shot: query points in evaluation; None: as in training.
      inputs: numbers of which an x consists.
      length_scale: of the covariance.
      noise: its standard deviation.

    Returns:
      A regression `DataSet`: `x: [n, inputs]`, `y: [n, 1]`.

    Raises:
      ConfigError: a number that cannot be used.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, section 2.2; as a task distribution, Garnelo
    et al. 2018, Conditional Neural Processes, section 4.1, and Müller et al. 2022, Transformers Can Do Bayesian Inference.
    """
    sizes = sizes_by_split(shot=shot, query_shot=query_shot, eval_query_shot=eval_query_shot, of_classes=False)
    inputs, noise = positive_int("dataset.inputs", inputs), positive_float("dataset.noise", noise)
    length_scale = positive_float("dataset.length_scale", length_scale)

    def source(sizes: TaskSizes) -> TaskSource:
        most = sizes.shot[1]

        def sample(data: tuple[()], key: Array) -> Task:
            x_key, y_key, size_key = jax.random.split(key, 3)
            x = jax.random.uniform(x_key, (most + sizes.query_shot, inputs), minval=-REACH, maxval=REACH)
            covariance_of_y = covariance(x, x, length_scale) + noise**2 * jnp.eye(len(x))
            y = jnp.linalg.cholesky(covariance_of_y) @ jax.random.normal(y_key, (len(x), 1))
            return masked_at(most, x, y, sizes.drawn_masks(size_key))

        return TaskSource((), sample)

    evaluated = source(sizes["test"])
    return DataSet(
        source(sizes["train"]),
        evaluated,
        evaluated,
        "regression",
        1,
        {
            "name": "gaussian_process",
            "inputs": inputs,
            "length_scale": length_scale,
            "noise": noise,
            "x": [-REACH, REACH],
        },
        varies=differing(sizes.values()),
    )


def covariance(x: Array, others: Array, length_scale: float) -> Array:
    """exp(-|x_i - x'_j|^2 / 2 length_scale^2): `[n, inputs]`, `[m, inputs]` -> `[n, m]`."""
    return jnp.exp(-jnp.square(x[:, None] - others[None]).sum(2) / (2 * length_scale**2))


def posterior_mean(support: Split, x: Array, length_scale: float, noise: float) -> Array:
    """What the best predictor answers at `x: [n, inputs]`, `[n, 1]`: K(x, X) (K(X, X) + noise^2 I)^-1 y.

    Source: Rasmussen and Williams 2006, equation 2.23.
    """
    mask = jnp.ones(len(support.x), bool) if support.mask is None else support.mask
    both = mask[:, None] & mask[None]
    known = jnp.where(both, covariance(support.x, support.x, length_scale), 0) + noise**2 * jnp.eye(len(support.x))
    to_known = jnp.where(mask[None], covariance(x, support.x, length_scale), 0)
    return to_known @ jax.scipy.linalg.solve(known, support.y, assume_a="pos")

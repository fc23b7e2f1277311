"""What a prediction is scored by: per-example losses and metrics of classification and regression."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metarun.errors import one_of
from metarun.types import Array

REDUCTIONS = ("mean", "sum", "class_sum")


class Objective(NamedTuple):
    """A loss and the metric that is reported beside it.

    Attributes:
      loss: `(outputs: [n, num_outputs], y) -> [n]`.
      metric: name of the metric.
      measure: `(outputs: [n, num_outputs], y) -> [n]`, whose mean over a query set is the metric of a task.
      maximize: whether more of the metric is better.
    """

    loss: Callable[[Array, Array], Array]
    metric: str
    measure: Callable[[Array, Array], Array]
    maximize: bool


def cross_entropy(outputs: Array, y: Array) -> Array:
    """-log softmax(outputs)[y] for each example: `[n, way]`, `[n]` int -> `[n]`."""
    return row_cross_entropy(outputs, jax.nn.one_hot(y, outputs.shape[1], dtype=outputs.dtype))


def row_cross_entropy(outputs: Array, targets: Array) -> Array:
    """-sum_k targets_k log softmax(outputs)_k for each example, of rows of probabilities: `[n, way]`, `[n, way]` -> `[n]`."""
    return -jnp.sum(jax.nn.log_softmax(outputs) * targets, 1)


def correct(outputs: Array, y: Array) -> Array:
    """1.0 where the largest output is the label's, else 0.0: `[n, way]`, `[n]` int -> `[n]`."""
    return (outputs.argmax(1).astype(y.dtype) == y).astype(outputs.dtype)


def squared_error(outputs: Array, y: Array) -> Array:
    """Squared error averaged over the target's dimensions: `[n, d]`, `[n, d]` -> `[n]`."""
    return jnp.square(outputs - y).mean(1)


OBJECTIVES = {
    "classification": Objective(cross_entropy, "accuracy", correct, True),
    "regression": Objective(squared_error, "mse", squared_error, False),
}


def reduce_loss(losses: Array, num_outputs: int, reduction: str) -> Array:
    """Turns the losses of a support set into the scalar that the inner loop descends.

    "mean" over the examples; "sum" over them; "class_sum": the mean within each class, summed over the classes. The
    code published with MAML (Finn et al. 2017) differentiates the last, so that its inner learning rates are `way`
    times larger on a mean.

    Args:
      losses: `[n]`, with the classes equally often.
      num_outputs: the way, for "class_sum".
      reduction: one of `REDUCTIONS`.
    """
    one_of("method.inner_reduction", reduction, REDUCTIONS)
    if reduction == "sum":
        return losses.sum()
    return losses.mean() * (num_outputs if reduction == "class_sum" else 1)

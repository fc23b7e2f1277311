"""What a prediction is scored by: per-example losses and metrics of classification and regression."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metarun.errors import one_of
from metarun.types import Array

REDUCTIONS = ("mean", "sum", "class_sum")
# The output for a class that a task has not: no softmax sees it, and its product with 0 is 0.
ABSENT = -1e9


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


def average(values: Array, mask: Array | None) -> Array:
    """The mean of `values: [n]` over the rows that are examples, see `types.Split`."""
    if mask is None:
        return values.mean()
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum().astype(values.dtype), 1)


def present(targets: Array, outputs: Array, mask: Array | None) -> Array:
    """Outputs `[n, way]` with `ABSENT` for classes that none of the rows of `targets: [k, way]` is of; without a mask all are there."""
    if mask is None:
        return outputs
    return jnp.where((targets > 0).any(0)[None], outputs, jnp.array(ABSENT, outputs.dtype))


def reduce_loss(losses: Array, num_outputs: int, reduction: str, mask: Array | None = None) -> Array:
    """Turns the losses of a support set into the scalar that the inner loop descends.

    "mean" over the examples; "sum" over them; "class_sum": the mean within each class, summed over the classes. The
    code published with MAML (Finn et al. 2017) differentiates the last, so that its inner learning rates are `way`
    times larger on a mean.

    Args:
      losses: `[n]`, with the classes equally often.
      num_outputs: the way, for "class_sum".
      reduction: one of `REDUCTIONS`.
      mask: of the examples, see `types.Split`.
    """
    one_of("method.inner_reduction", reduction, REDUCTIONS)
    if reduction == "sum":
        return losses.sum() if mask is None else jnp.where(mask, losses, 0).sum()
    return average(losses, mask) * (num_outputs if reduction == "class_sum" else 1)

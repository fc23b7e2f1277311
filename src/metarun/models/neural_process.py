"""Conditional neural processes: what was seen becomes a mean, which a network is given beside what it is asked."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from metarun.models.set_model import set_model
from metarun.types import Array, SequenceModel


class _NeuralProcess(nn.Module):
    num_outputs: int
    size: int
    products: int
    by_class: bool
    dtype: Any

    def setup(self) -> None:
        dense = lambda size, **options: nn.Dense(size, param_dtype=self.dtype, **options)
        relu = lambda: dense(self.size, kernel_init=nn.initializers.he_normal())
        self.h: Any = [relu(), relu(), dense(self.size)]
        self.g: Any = [relu(), relu(), dense(self.num_outputs)]
        if self.products:
            self.what: Any = dense(self.products)
            self.where: Any = dense(self.products)

    def __call__(self, rows: Array, ends: Array) -> Array:
        return self.answer(self.read(rows, None), ends)

    def read(self, rows: Array, mask: Array | None) -> Array:
        """r, `[size]`, or `[num_outputs * size]` by class, of rows that hold an embedding, a target and a flag."""
        first, second, last = self.h
        seen = last(nn.relu(second(nn.relu(first(rows)))))
        targets = rows[:, -self.num_outputs - 1 : -1]
        weights = targets if self.by_class else jnp.ones_like(targets[:, :1])
        if mask is not None:
            weights = jnp.where(mask[:, None], weights, 0)
        total = weights.sum(0)[:, None]
        return (weights.T @ seen / jnp.where(total > 0, total, 1)).reshape(-1)

    def answer(self, context: Array, ends: Array) -> Array:
        first, second, last = self.g
        both = jnp.concatenate([jnp.broadcast_to(context, (ends.shape[0], context.size)), ends], 1)
        hidden = nn.relu(second(nn.relu(first(both))))
        if self.products:
            hidden = jnp.concatenate([hidden, self.what(context)[None] * self.where(ends)], 1)
        return last(hidden)


def neural_process(*, num_outputs: int, size: int, products: int, by_class: bool) -> SequenceModel:
    """g(r, (x, ?)) with r the mean of h(x_i, y_i), or their means within each class side by side.

    A row is an embedding, a target and a flag, see `sequence.beside`.

    Args:
      num_outputs: outputs, and entries of a target.
      size: of the hidden layers of h and g, and of r; ReLU between them.
      products: of a linear layer over r with one over (x, ?), which the last layer of g is given beside its hidden layer: with
        them, whether a query is like what was read is one layer away. The paper has none.
      by_class: whether targets are of classes, by which means are taken.

    Source: Garnelo et al. 2018, Conditional Neural Processes, equations 2 to 4; by class, section 4.3.
    """
    return set_model(lambda dtype: _NeuralProcess(num_outputs, size, products, by_class, dtype))

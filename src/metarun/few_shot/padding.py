"""Padded tasks at little more than the cost of their own size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metarun.types import Array, Metrics, Params, Split, Task

PARTS = 4  # sizes of a program, each of which has to be compiled


def at_its_size(loss: Callable[..., tuple[Array, Metrics]]) -> Callable[..., tuple[Array, Metrics]]:
    """The same loss, computed on no more rows than a quarter, a half, three quarters or all of the largest task's.

    The least of them is taken that a task's examples fit, at run time. The choice is between gradients: the gradient of a
    choice would write what each of the alternatives keeps for its own. So the gradient is computed with the loss. Under
    `jax.vmap` all alternatives would be computed.

    Args:
      loss: `(params, task, *rest) -> (scalar, metrics)` of tasks whose sets have masks, examples first.
    """

    def computed(params: Params, task: Task, *rest: Any) -> Any:
        masks: list[Any] = [part.mask for part in task]
        sizes = [[-(-mask.size * number // PARTS) for mask in masks] for number in range(1, PARTS + 1)]

        def at(size: list[int]) -> Callable[[], Any]:
            cut = Task(*(_first(part, rows) for part, rows in zip(task, size, strict=True)))
            return lambda: jax.value_and_grad(lambda params: loss(params, cut, *rest), has_aux=True)(params)

        counts = [mask.sum() for mask in masks]
        too_small = [
            jnp.array([rows < count for rows, count in zip(size, counts, strict=True)]).any() for size in sizes
        ]
        return lax.switch(sum(each.astype(jnp.int32) for each in too_small), [at(size) for size in sizes])

    @jax.custom_vjp
    def of_its_size(params: Params, *rest: Any) -> tuple[Array, Metrics]:
        return computed(params, *rest)[0]

    def backward(saved: Any, of_loss: Any) -> Any:
        gradient, others = saved
        return jax.tree.map(lambda leaf: of_loss[0] * leaf, gradient), *others

    def forward(params: Params, *rest: Any) -> Any:
        found, gradient = computed(params, *rest)
        return found, (gradient, (None,) * len(rest))

    of_its_size.defvjp(forward, backward)
    return of_its_size


def _first(part: Split, rows: int) -> Split:
    return jax.tree.map(lambda array: array[:rows], part)

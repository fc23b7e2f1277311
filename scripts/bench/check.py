"""Whether the work is the work: loss and meta-gradient of the recipe, to be held against other libraries'."""

import jax
import numpy as np

from bench import recipe
from metarun.compiled.task_map import Layout, mean_gradient


def meta_gradients(work: recipe.Work, layout: Layout) -> dict[str, float]:
    """Loss and Euclidean norm of the meta-gradient, means over the first meta-batch at the recipe's weights.

    Returns:
      {"loss", "second_order", "first_order"}: the loss, and the norms with and without second derivatives.
    """
    params, tasks = recipe.weights(work), next(recipe.meta_batches(work))
    found = {}
    for name, first_order in (("second_order", False), ("first_order", True)):
        method = recipe.method(work, first_order=first_order)
        gradient, metrics = jax.jit(
            lambda params, key, tasks, loss=method.loss: mean_gradient(
                lambda params, key, task: loss(params, task, key), layout, params, key, tasks
            )
        )(params, jax.random.key(0), tasks)
        squares = [np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(gradient)]
        found |= {"loss": round(float(metrics["loss"]), 6), name: float(np.sqrt(sum(squares)))}
    return found

"""Reptile: towards the parameters that training on a task leads to.

Source: Nichol, Achiam and Schulman 2018, On First-Order Meta-Learning Algorithms.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metarun.errors import one_of, positive_float, positive_int
from metarun.few_shot.inner_loop import numbers_of_steps, optimised, split_loss
from metarun.few_shot.learner import query_loss, stepwise
from metarun.types import Array, Method, Model

OPTIMIZERS = {"adam": lambda lr: optax.adam(lr, b1=0.0, b2=0.999), "sgd": optax.sgd}


def reptile(
    *,
    model: Model,
    objective: str,
    inner_optimizer: str = "adam",
    inner_lr: float = 0.001,
    inner_steps: int = 5,
    inner_batch_size: int | None = 10,
    eval_inner_steps: int | None = 50,
    eval_inner_batch_size: int | None = None,
    query_statistics: str = "query",
) -> Method:
    """The update of theta is theta - theta_k, with theta_k found in k steps of training on the task from theta.

    It is the gradient of 1/2 |theta - theta_k|^2, theta_k being a constant; theta + epsilon (theta_k - theta), the
    paper's update, is one step of gradient descent on that. In meta-training support and query are one set.

    Args:
      model: the network.
      objective: "classification" or "regression".
      inner_optimizer: "adam", without its first moment as in the paper, started anew on every task; or "sgd".
      inner_lr: learning rate of the inner optimiser.
      inner_steps: inner steps in training, k; at least 1. Of one full batch, they would be training on all tasks
        jointly.
      inner_batch_size: examples of an inner step in training, without replacement until all have had their turn;
        None, or more than there are: all of them.
      eval_inner_steps: inner steps in evaluation, on the support set; None: as in training.
      eval_inner_batch_size: examples of one; None: the whole support set.
      query_statistics: see `learner`; the paper reports both, "query" as "Transduction".

    Returns:
      A `Method` whose meta-parameters are theta. The metrics of its outer loss are those of the task's queries under
      theta_k, which has been trained on them.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: algorithm 2; section 6 and appendix A for the settings.
    """
    lr = positive_float("method.inner_lr", inner_lr)
    optimizer = OPTIMIZERS[one_of("method.inner_optimizer", inner_optimizer, OPTIMIZERS)](lr)
    train_steps, eval_steps = numbers_of_steps(inner_steps, eval_inner_steps)
    train_batch = _batch_size("method.inner_batch_size", inner_batch_size)
    eval_batch = _batch_size("method.eval_inner_batch_size", eval_inner_batch_size)
    batch_loss = split_loss(model.apply, objective)

    def trained(params, split, key, num_steps, batch_size):
        def loss_of(params, batch):
            return batch_loss(params, jax.tree.map(lambda x: x[batch], split))

        batches = _batches(key, split.y.shape[0], num_steps, batch_size)
        return optimised(loss_of, params, batches, optimizer=optimizer, num_steps=num_steps)

    def trained_on_all(params, task, key):
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts), task.support, task.query)
        return trained(params, both, key, train_steps, train_batch)

    shared: dict[str, Any] = {"answer": model.apply, "objective": objective, "query_statistics": query_statistics}
    judged = query_loss(**shared)

    def loss(params, task, key):
        target = trained_on_all(lax.stop_gradient(params), task, key)
        distance = jax.tree.map(lambda a, b: 0.5 * jnp.sum(jnp.square(a - b)), params, target)
        return sum(jax.tree.leaves(distance)), judged(target, task)[1]

    method = stepwise(
        init=lambda key, task: model.init(key, task.support.x),
        adapt=lambda params, support, key, num_steps: trained(params, support, key, num_steps, eval_batch),
        num_steps=(train_steps, eval_steps),
        protocol={"eval_inner_batch_size": eval_batch},
        # Batches are of so many rows, whether they are examples or padding.
        varies=("shot",) if train_batch is None and eval_batch is None else (),
        **shared,
    )
    return method._replace(loss=loss)


def _batch_size(key: str, value: int | None) -> int | None:
    return None if value is None else positive_int(key, value)


def _batches(key: Array, num_examples: int, num_steps: int, batch_size: int | None) -> Array:
    """Indices of the examples of each step, `[num_steps, batch]`: one random order after another, cut into batches."""
    if batch_size is None or batch_size >= num_examples:
        return jnp.tile(jnp.arange(num_examples), (num_steps, 1))
    needed = num_steps * batch_size
    keys = jax.random.split(key, -(-needed // num_examples))
    orders = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(keys)
    return orders.reshape(-1)[:needed].reshape(num_steps, batch_size)

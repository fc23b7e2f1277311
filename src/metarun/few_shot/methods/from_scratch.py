"""Training from scratch on the support set: what the task itself teaches, nothing having been meta-learnt."""

import optax

from metarun.errors import one_of, positive_float, positive_int
from metarun.few_shot.inner_loop import optimised, split_loss
from metarun.few_shot.learner import stepwise
from metarun.types import Method, Model

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}


def from_scratch(
    *,
    model: Model,
    objective: str,
    inner_optimizer: str = "adam",
    inner_lr: float = 0.001,
    inner_steps: int = 100,
    query_statistics: str = "query",
) -> Method:
    """A network of random parameters, drawn anew for every task, descends the mean loss of the support set.

    Args:
      model: the network.
      objective: "classification" or "regression".
      inner_optimizer: "sgd" (gradient descent) or "adam"; every step sees the whole support set.
      inner_lr: its learning rate.
      inner_steps: its steps.
      query_statistics: see `learner`.

    Returns:
      A `Method` without meta-parameters, which trains on nothing.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    make = OPTIMIZERS[one_of("method.inner_optimizer", inner_optimizer, OPTIMIZERS)]
    optimizer = make(positive_float("method.inner_lr", inner_lr))
    num_steps = positive_int("method.inner_steps", inner_steps)
    support_loss = split_loss(model.apply, objective)

    def trained(meta_params, support, key, num_steps):
        loss_fn = lambda params, _: support_loss(params, support)
        return optimised(loss_fn, model.init(key, support.x), None, optimizer=optimizer, num_steps=num_steps)

    return stepwise(
        init=lambda key, task: {},
        adapt=trained,
        num_steps=(num_steps, num_steps),
        answer=model.apply,
        objective=objective,
        query_statistics=query_statistics,
        trains_on="nothing",
        varies=("shot",),
    )

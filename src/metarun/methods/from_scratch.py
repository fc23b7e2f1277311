"""Training from scratch on the support set: what the task itself teaches, nothing having been meta-learnt."""

import jax
import optax
from jax import lax

from metarun.errors import one_of, positive_float, positive_int
from metarun.learner import learner
from metarun.losses import OBJECTIVES
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
    score = OBJECTIVES[objective]

    def fresh(meta_params, support, key):
        return model.init(key, support.x)

    def adapt(meta_params, support, key):
        def support_loss(params):
            return score.loss(model.apply(params, support.x), support.y).mean()

        def step(params_and_state, _):
            params, state = params_and_state
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer counts by floats
                updates, state = optimizer.update(jax.grad(support_loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = fresh(meta_params, support, key)
        return lax.scan(step, (params, optimizer.init(params)), None, length=num_steps)[0][0]

    return learner(
        init=lambda key, task: {},
        adapt=adapt,
        answer=model.apply,
        unadapted=fresh,
        objective=objective,
        query_statistics=query_statistics,
        protocol={"eval_inner_steps": num_steps},
        trains_on="nothing",
    )

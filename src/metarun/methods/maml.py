"""Model-agnostic meta-learning.

Source: Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from metarun.errors import non_negative_int, one_of, positive_float, positive_int, true_or_false
from metarun.inner_loop import gradient_descent
from metarun.losses import OBJECTIVES, REDUCTIONS, reduce_loss
from metarun.types import Array, Method, Model, Params

INNER_PARAMS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "no_norm": lambda name: "norm" not in name,
}
STATISTICS = ("query", "support")


class Adapted(NamedTuple):
    """A learner that has seen a support set.

    Attributes:
      fast_params: theta', the parameters after the inner steps.
      reference: support inputs `[n, *feature]` whose statistics normalise the queries, or `[0, *feature]`.
    """

    fast_params: Params
    reference: Array


def maml(
    *,
    model: Model,
    objective: str,
    inner_lr: float = 0.4,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    first_order: bool = False,
    inner_params: str = "all",
    inner_reduction: str = "mean",
    query_statistics: str = "query",
    remat: bool = False,
) -> Method:
    """min over theta of E_task [ L_query(theta') ], with theta' = theta - inner_lr * grad L_support(theta), k times.

    Args:
      model: the network.
      objective: "classification" or "regression".
      inner_lr: alpha of the inner steps.
      inner_steps: inner steps in training; at least 1.
      eval_inner_steps: inner steps in evaluation; None: as in training.
      first_order: drop the second derivatives (FOMAML, section 5.2 of the paper).
      inner_params: "all", or "no_norm": scale and shift of the normalisation are meta-learnt but not adapted, as in
        the published code.
      inner_reduction: how the support losses become a scalar, see `losses.reduce_loss`.
      query_statistics: which set's statistics normalise the queries: "query", the queries themselves (transductive:
        the answer to one depends on the others; what the published code does), or "support".
      remat: trade time for memory in the inner steps, see `inner_loop.gradient_descent`; chosen by `memory.remat`.

    Returns:
      A `Method` whose meta-parameters are theta.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    lr = positive_float("method.inner_lr", inner_lr)
    train_steps = positive_int("method.inner_steps", inner_steps)
    eval_steps = (
        train_steps if eval_inner_steps is None else non_negative_int("method.eval_inner_steps", eval_inner_steps)
    )
    true_or_false("method.first_order", first_order)
    adapts = INNER_PARAMS[one_of("method.inner_params", inner_params, INNER_PARAMS)]
    one_of("method.inner_reduction", inner_reduction, REDUCTIONS)
    one_of("method.query_statistics", query_statistics, STATISTICS)
    score = OBJECTIVES[objective]

    def inner_loop(meta_params, support, num_steps):
        def support_loss(params):
            outputs = model.apply(params, support.x)
            return reduce_loss(score.loss(outputs, support.y), outputs.shape[-1], inner_reduction)

        fast_params = gradient_descent(
            support_loss, meta_params, lr=lr, num_steps=num_steps, first_order=first_order, remat=remat, adapts=adapts
        )
        return Adapted(fast_params, support.x if query_statistics == "support" else support.x[:0])

    def predict(adapted, x):
        num_reference = adapted.reference.shape[0]
        if num_reference == 0:
            return model.apply(adapted.fast_params, x)
        together = jnp.concatenate([adapted.reference, x])
        return model.apply(adapted.fast_params, together, num_reference)[num_reference:]

    def loss(meta_params, task, key):
        del key
        outputs = predict(inner_loop(meta_params, task.support, train_steps), task.query.x)
        query_loss = score.loss(outputs, task.query.y).mean()
        return query_loss, {"loss": query_loss, f"query/{score.metric}": score.measure(outputs, task.query.y).mean()}

    return Method(
        init=lambda key, task: model.init(key, task.support.x),
        adapt=lambda meta_params, support, key: inner_loop(meta_params, support, eval_steps),
        predict=predict,
        loss=loss,
        unadapted=lambda meta_params, support, key: inner_loop(meta_params, support, 0),
        protocol={
            "eval_inner_steps": eval_steps,
            "inner_reduction": inner_reduction,
            "query_statistics": query_statistics,
        },
    )

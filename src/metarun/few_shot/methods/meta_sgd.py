"""Meta-SGD: MAML that learns its inner learning rates, one for each parameter.

Source: Li, Zhou, Chen and Li 2017, Meta-SGD: Learning to Learn Quickly for Few-Shot Learning.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metarun.errors import ConfigError, positive_float, true_or_false
from metarun.few_shot.inner_loop import gradient_descent, numbers_of_steps, split_loss
from metarun.few_shot.learner import stepwise
from metarun.types import Array, Method, Model, Params


def meta_sgd(
    *,
    model: Model,
    objective: str,
    inner_lr: float | Sequence[float] = (0.005, 0.1),
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    first_order: bool = False,
    inner_reduction: str = "mean",
    query_statistics: str = "query",
    remat: bool = False,
) -> Method:
    """min over theta and alpha of E_task [ L_query(theta') ], with theta' = theta - alpha * grad L_support(theta).

    The product is elementwise: alpha, of the shape of theta, decides direction and length of the inner step.

    Args:
      model: the network.
      objective: "classification" or "regression".
      inner_lr: alpha at the start of meta-training: a number, or the ends of a range from which each parameter's is
        drawn; the paper draws them from [0.005, 0.1].
      inner_steps: inner steps in training; at least 1, as in the paper.
      eval_inner_steps: inner steps in evaluation; None: as in training.
      first_order: drop the second derivatives.
      inner_reduction: how the support losses become a scalar, see `losses.reduce_loss`.
      query_statistics: see `learner`.
      remat: trade time for memory in the inner steps, see `inner_loop.iterate`; chosen by `memory.remat`.

    Returns:
      A `Method` whose meta-parameters are {"params": theta, "lr": alpha}.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: equations 3 and 4, algorithm 1.
    """
    lowest, highest = _range(inner_lr)
    true_or_false("method.first_order", first_order)
    support_loss = split_loss(model.apply, objective, inner_reduction)

    def init(key, task):
        params_key, lr_key = jax.random.split(key)
        params = model.init(params_key, task.support.x)
        return {"params": params, "lr": _uniform(lr_key, params, lowest, highest)}

    def fast_params(meta_params, support, key, num_steps):
        return gradient_descent(
            lambda params: support_loss(params, support),
            meta_params["params"],
            lr=meta_params["lr"],
            num_steps=num_steps,
            first_order=first_order,
            remat=remat,
        )

    return stepwise(
        init=init,
        adapt=fast_params,
        num_steps=numbers_of_steps(inner_steps, eval_inner_steps),
        answer=model.apply,
        objective=objective,
        query_statistics=query_statistics,
        protocol={"inner_reduction": inner_reduction},
        varies=("shot",),
    )


def _range(inner_lr: float | Sequence[float]) -> tuple[float, float]:
    key, ends = "method.inner_lr", inner_lr if isinstance(inner_lr, Sequence) else (inner_lr, inner_lr)
    if isinstance(inner_lr, str) or len(ends) != 2:
        raise ConfigError(key, inner_lr, "a number above 0, or a range such as [0.005,0.1]")
    lowest, highest = (positive_float(key, end) for end in ends)
    if lowest > highest:
        raise ConfigError(key, inner_lr, "a range that begins with its lower end, such as [0.005,0.1]")
    return lowest, highest


def _uniform(key: Array, params: Params, lowest: float, highest: float) -> Params:
    """Draws from [lowest, highest) for every entry of `params`."""
    if lowest == highest:
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, lowest), params)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draw = lambda key, leaf: jax.random.uniform(key, leaf.shape, leaf.dtype, lowest, highest)
    return structure.unflatten([draw(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])

"""A support vector machine as the last layer.

Source: Lee, Maji, Ravichandran and Soatto 2019, Meta-Learning with Differentiable Convex Optimization.
"""

import jax.numpy as jnp

from metarun.errors import positive_float
from metarun.few_shot.learner import conditioned, flat, only, refuse_regression
from metarun.few_shot.svm import crammer_singer
from metarun.types import Method, Model


def metaoptnet(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    train_way: int | None = None,
    penalty: float = 0.1,
    ridge: float = 1.0,
    init_scale: float = 1.0,
    query_statistics: str = "support",
) -> Method:
    """Outputs scale * w_k . f(x), with w_k = sum_i alpha_ik f(x_i) the support vector machine of the support set.

    Args:
      encoder: the network f, `[n, *feature]` -> `[n, *embedding]`.
      objective: "classification".
      num_outputs: the way.
      train_way: classes of a training task; None: the same.
      penalty: C, the bound of the dual weights alpha.
      ridge: added to the diagonal of the kernel f(x_i) . f(x_j), 1 in the published code.
      init_scale: gamma at the start of meta-training, which learns it.
      query_statistics: see `learner`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: equations 6, 8 and 12.
    """
    refuse_regression("metaoptnet", objective)
    penalty = positive_float("method.penalty", penalty)
    ridge = positive_float("method.ridge", ridge)
    init_scale = positive_float("method.init_scale", init_scale)

    def init(key, task):
        x = task.support.x
        return {"encoder": encoder.init(key, x), "scale": jnp.array(init_scale, x.dtype)}

    def read(meta_params, support, key):
        features = only(flat(encoder.apply(meta_params["encoder"], support.x, support.mask)), support.mask)
        kernel = features @ features.T + ridge * jnp.eye(features.shape[0], dtype=features.dtype)
        return meta_params, features.T @ crammer_singer(kernel, support.y, penalty, support.mask)

    def answer(state, x, reference):
        meta_params, weights = state
        return meta_params["scale"] * (flat(encoder.apply(meta_params["encoder"], x, reference)) @ weights)

    return conditioned(
        init=init,
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        train_way=train_way,
        varies=("way", "shot"),
    )

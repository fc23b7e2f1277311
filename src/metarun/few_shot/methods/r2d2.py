"""Differentiable ridge regression as the last layer.

Source: Bertinetto, Henriques, Torr and Vedaldi 2019, Meta-learning with Differentiable Closed-form Solvers.
"""

import jax
import jax.numpy as jnp

from metarun.errors import positive_float
from metarun.few_shot.learner import conditioned, flat, only
from metarun.types import Array, Method, Model


def ridge_regression(features: Array, targets: Array, penalty: Array) -> Array:
    """W = argmin |Z W - Y|^2 + penalty |W|^2, in Woodbury's form Z^T (Z Z^T + penalty I)^-1 Y.

    The system has the size of the set and not of the features, which in few-shot learning is the smaller.

    Args:
      features: Z, `[n, size]`.
      targets: Y, `[n, num_outputs]`.
      penalty: a scalar above 0.

    Returns:
      W, `[size, num_outputs]`.

    Source: equations 4 and 5.
    """
    gram = features @ features.T + penalty * jnp.eye(features.shape[0], dtype=features.dtype)
    return features.T @ jax.scipy.linalg.solve(gram, targets, assume_a="pos")


def r2d2(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    train_way: int | None = None,
    init_penalty: float = 1.0,
    init_scale: float = 1.0,
    query_statistics: str = "support",
) -> Method:
    """Outputs scale * [f(x), 1] W + bias, with W the ridge regression of the support targets on [f, 1].

    Penalty and scale are meta-learnt as their logarithms, which keeps them above 0, and so is the bias, which starts
    at 0. All outputs share the one bias: a squared error sees it, a softmax does not.

    Args:
      encoder: the network f, `[n, *feature]` -> `[n, *embedding]`.
      objective: "classification", where the targets are one-hot, or "regression".
      num_outputs: the way, or the size of a regression target.
      train_way: classes of a training task; None: the same.
      init_penalty: lambda at the start of meta-training.
      init_scale: alpha at the start of meta-training.
      query_statistics: see `learner`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: sections 3.1 and 3.2; the constant feature as in the published code.
    """
    penalty = positive_float("method.init_penalty", init_penalty)
    scale = positive_float("method.init_scale", init_scale)

    def embed(meta_params, x, reference=None):
        features = flat(encoder.apply(meta_params["encoder"], x, reference))
        return jnp.concatenate([features, jnp.ones_like(features[:, :1])], 1)

    def init(key, task):
        dtype = task.support.x.dtype
        return {
            "encoder": encoder.init(key, task.support.x),
            "log_penalty": jnp.log(jnp.array(penalty, dtype)),
            "log_scale": jnp.log(jnp.array(scale, dtype)),
            "bias": jnp.zeros((), dtype),
        }

    def read(meta_params, support, key):
        features = only(embed(meta_params, support.x, support.mask), support.mask)
        return meta_params, ridge_regression(features, support.y, jnp.exp(meta_params["log_penalty"]))

    def answer(state, x, reference):
        meta_params, weights = state
        return jnp.exp(meta_params["log_scale"]) * (embed(meta_params, x, reference) @ weights) + meta_params["bias"]

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

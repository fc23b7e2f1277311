"""CAVIA: fast context adaptation. A few context parameters are adapted to a task, the network is not.

Source: Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson 2019, Fast Context Adaptation via Meta-Learning.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import sqrt

import jax
import jax.numpy as jnp

from metarun.errors import ConfigError, positive_float, positive_int, true_or_false
from metarun.few_shot.inner_loop import gradient_descent, numbers_of_steps, partition, split_loss
from metarun.few_shot.learner import stepwise
from metarun.types import Method, Model


def cavia(
    *,
    model: Model,
    objective: str,
    num_context: int = 100,
    context_at: Sequence[str] = ("conv2/norm_*", "dense0/bias"),
    inner_lr: float = 1.0,
    inner_steps: int = 2,
    eval_inner_steps: int | None = None,
    first_order: bool = False,
    inner_reduction: str = "mean",
    query_statistics: str = "query",
    remat: bool = False,
) -> Method:
    """min over theta of E_task [ L_query(theta, phi') ], phi' = 0 - inner_lr * grad_phi L_support(theta, 0), k times.

    The context phi enters the network linearly, through parameters of it: p becomes p + phi W_p, with W_p meta-learnt.
    For scale and shift of a normalisation this is FiLM, an affine map of a layer's channels that the context generates
    (section 3.2, the third convolution in the paper); for the bias of the first layer it is the context concatenated to
    the input (section 3.1).

    Args:
      model: the network.
      objective: "classification" or "regression".
      num_context: size of phi.
      context_at: names of the parameters that phi shifts ("layer/kernel"; * stands for anything). Names that the
        network has not are passed over, so that the default serves both kinds of network of the paper.
      inner_lr: step size on phi.
      inner_steps: inner steps in training; at least 1.
      eval_inner_steps: inner steps in evaluation; None: as in training.
      first_order: drop the second derivatives.
      inner_reduction: how the support losses become a scalar, see `losses.reduce_loss`.
      query_statistics: see `learner`.
      remat: trade time for memory in the inner steps, see `inner_loop.iterate`; chosen by `memory.remat`.

    Returns:
      A `Method` whose meta-parameters are {"params": theta, "context": [W_p, ...]}, each W_p of `[num_context, *p]`.

    Raises:
      ConfigError: for a value that is not allowed, or if no parameter has a name of `context_at`.

    Source: equations 5 and 6, algorithm 1.
    """
    num_context = positive_int("method.num_context", num_context)
    if (
        isinstance(context_at, str)
        or not isinstance(context_at, Sequence)
        or not all(isinstance(name, str) for name in context_at)
    ):
        raise ConfigError("method.context_at", context_at, "a list of names such as [conv2/norm_*]")
    lr = positive_float("method.inner_lr", inner_lr)
    true_or_false("method.first_order", first_order)
    support_loss = split_loss(model.apply, objective, inner_reduction)

    def is_shifted(name):
        return any(fnmatchcase(name, pattern) for pattern in context_at)

    def init(key, task):
        params_key, context_key = jax.random.split(key)
        params = model.init(params_key, task.support.x)
        shifted, _ = partition(params, is_shifted)
        if not shifted:
            raise ConfigError("method.context_at", context_at, f"names of parameters, such as {_names(params)}")
        keys = jax.random.split(context_key, len(shifted))
        weights = [
            jax.random.normal(key, (num_context, *leaf.shape), leaf.dtype) / sqrt(num_context)
            for key, leaf in zip(keys, shifted, strict=True)
        ]
        return {"params": params, "context": weights}

    def with_context(meta_params, phi):
        shifted, merge = partition(meta_params["params"], is_shifted)
        shifts = [jnp.tensordot(phi, weights, 1) for weights in meta_params["context"]]
        return merge([leaf + shift for leaf, shift in zip(shifted, shifts, strict=True)])

    def adapted(meta_params, support, key, num_steps):
        phi = gradient_descent(
            lambda phi: support_loss(with_context(meta_params, phi), support),
            jnp.zeros(num_context, meta_params["context"][0].dtype),
            lr=lr,
            num_steps=num_steps,
            first_order=first_order,
            remat=remat,
        )
        return with_context(meta_params, phi)

    return stepwise(
        init=init,
        adapt=adapted,
        num_steps=numbers_of_steps(inner_steps, eval_inner_steps),
        answer=model.apply,
        objective=objective,
        query_statistics=query_statistics,
        protocol={"inner_reduction": inner_reduction},
        varies=("shot",),
    )


def _names(params):
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return ", ".join("/".join(str(entry.key) for entry in path) for path in paths)

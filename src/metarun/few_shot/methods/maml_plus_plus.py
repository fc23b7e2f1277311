"""MAML++: MAML with five changes for stability and speed, each of which can be had alone.

Source: Antoniou, Edwards and Storkey 2019, How to Train Your MAML.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from metarun.errors import ConfigError, non_negative_int, one_of, positive_float, true_or_false
from metarun.few_shot.inner_loop import INNER_PARAMS, descend, iterate, numbers_of_steps, partition, split_loss
from metarun.few_shot.learner import query_loss, stepwise
from metarun.types import Method, Model


def maml_plus_plus(
    *,
    model: Model,
    objective: str,
    inner_lr: float = 0.1,
    inner_steps: int = 5,
    eval_inner_steps: int | None = None,
    multi_step_loss_steps: int = 0,
    first_order_steps: int = 0,
    per_step_lr: bool = False,
    per_step_norm: bool = False,
    inner_params: str = "all",
    inner_reduction: str = "mean",
    query_statistics: str = "query",
    remat: bool = False,
) -> Method:
    """min over theta of E_task [ sum_i w_i L_query(theta_i) ], theta_i+1 = theta_i - alpha_i * grad L_support(theta_i).

    With every knob off it is `maml`, to the last bit. The paper's last change, a cosine schedule of the outer learning
    rate, is `optimizer.schedule=cosine`.

    Args:
      model: the network.
      objective: "classification" or "regression".
      inner_lr: alpha of the inner steps, or what they start from.
      inner_steps: inner steps in training, k; at least 1.
      eval_inner_steps: inner steps in evaluation; None: as in training. Beyond the k-th they do as the k-th does.
      multi_step_loss_steps: outer steps N over which the weights w go linearly from 1 / k each to the last alone
        (section 4, "Multi-Step Loss Optimization"); 0: the last alone from the beginning.
      first_order_steps: outer steps at the beginning that drop the second derivatives ("Derivative-Order Annealing").
      per_step_lr: learn alpha, one for each array of parameters and each step ("Learning Per-Layer Per-Step Learning
        Rates").
      per_step_norm: scale and shift of the normalisation are learnt for each step and not adapted ("Per-Step Batch
        Normalization Weights and Biases"). There are no running statistics, per step or otherwise: each set is
        normalised by its own.
      inner_params: what is adapted: "all"; "no_norm", all but scale and shift of the normalisation; "head", the last
        layer; or "body", all but the last layer.
      inner_reduction: how the support losses become a scalar, see `losses.reduce_loss`.
      query_statistics: see `learner`.
      remat: trade time for memory in the inner steps, see `inner_loop.iterate`; chosen by `memory.remat`.

    Returns:
      A `Method` whose meta-parameters are {"params": theta}, and {"lr": alpha}, a list of `[k]` for each adapted array,
      if they are learnt. `early` is what changes in the course of training.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    lr = positive_float("method.inner_lr", inner_lr)
    train_steps, eval_steps = numbers_of_steps(inner_steps, eval_inner_steps)
    multi_step_end = non_negative_int("method.multi_step_loss_steps", multi_step_loss_steps)
    first_order_end = non_negative_int("method.first_order_steps", first_order_steps)
    true_or_false("method.per_step_lr", per_step_lr)
    true_or_false("method.per_step_norm", per_step_norm)
    chosen = INNER_PARAMS[one_of("method.inner_params", inner_params, INNER_PARAMS)]
    support_loss = split_loss(model.apply, objective, inner_reduction)

    def of_step(name):
        return per_step_norm and "norm" in name

    def adapts(name):
        return chosen(name) and not of_step(name)

    def init(key, task):
        params = model.init(key, task.support.x)
        norms, with_norms = partition(params, of_step)
        if per_step_norm and not norms:
            raise ConfigError("method.per_step_norm", per_step_norm, "false: the network has no normalisation")
        meta_params = {"params": with_norms([jnp.stack([leaf] * train_steps) for leaf in norms])}
        if per_step_lr:
            fast, _ = partition(params, adapts)
            meta_params["lr"] = [jnp.full(train_steps, lr, leaf.dtype) for leaf in fast]
        return meta_params

    def inner_loop(meta_params, support, num_steps, first_order=False, look=lambda params: None):
        """Returns the adapted parameters, and `look(theta_i)` for i = 1 ... num_steps, stacked."""
        norms, with_norms = partition(meta_params["params"], of_step)
        start, _ = partition(meta_params["params"], adapts)
        index = jnp.minimum(jnp.arange(num_steps), train_steps - 1)
        norms_and_rates = jax.tree.map(lambda leaf: leaf[index], (norms, meta_params.get("lr")))

        def at(norms, fast):
            _, with_fast = partition(with_norms(norms), adapts)
            return with_fast(fast)

        def step(fast, norms_and_rates):
            norms, rates = norms_and_rates
            loss = lambda fast: support_loss(at(norms, fast), support)
            fast = descend(loss, fast, lr if rates is None else rates, first_order=first_order)
            return fast, look(at(norms, fast))

        fast, looks = iterate(step, start, norms_and_rates, num_steps, remat=remat)
        last = min(max(num_steps, 1), train_steps) - 1
        return at([leaf[last] for leaf in norms], fast), looks

    shared: dict[str, Any] = {"answer": model.apply, "objective": objective, "query_statistics": query_statistics}
    judged = query_loss(**shared)

    def last_step_loss(meta_params, task, key, step, first_order):
        fast, _ = inner_loop(meta_params, task.support, train_steps, first_order)
        return judged(fast, task)

    def multi_step_loss(meta_params, task, key, step, first_order):
        look = lambda params: judged(params, task)
        _, (losses, metrics) = inner_loop(meta_params, task.support, train_steps, first_order, look)
        progress = jnp.minimum(step.astype(losses.dtype) / multi_step_end, 1)
        weights = jnp.full_like(losses, (1 - progress) / train_steps).at[-1].add(progress)
        return weights @ losses, jax.tree.map(lambda metric: metric[-1], metrics)

    def early_loss(end):
        """The loss of the outer steps before `end` and since the end before it."""
        loss = multi_step_loss if end <= multi_step_end else last_step_loss
        return partial(loss, first_order=end <= first_order_end)

    method = stepwise(
        init=init,
        adapt=lambda meta_params, support, key, num_steps: inner_loop(meta_params, support, num_steps)[0],
        num_steps=(train_steps, eval_steps),
        protocol={"inner_reduction": inner_reduction},
        varies=("shot",),
        **shared,
    )
    ends = sorted({multi_step_end, first_order_end} - {0})
    return method._replace(early=[(end, early_loss(end)) for end in ends])

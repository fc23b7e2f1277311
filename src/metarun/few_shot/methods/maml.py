"""Model-agnostic meta-learning.

Source: Finn, Abbeel and Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
"""

from metarun.errors import one_of, positive_float, true_or_false
from metarun.few_shot.inner_loop import INNER_PARAMS, gradient_descent, numbers_of_steps, split_loss
from metarun.few_shot.learner import stepwise
from metarun.types import Method, Model


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
      inner_steps: inner steps in training; 0: theta fits all tasks at once, which is pre-training (section 5.1).
      eval_inner_steps: inner steps in evaluation; None: as in training.
      first_order: drop the second derivatives (FOMAML, section 5.2 of the paper).
      inner_params: what is adapted, the rest being meta-learnt alone: "all"; "no_norm", all but scale and shift of the
        normalisation, as in the published code; "head", the last layer (ANIL, Raghu et al. 2020, section 4.1); or
        "body", all but the last layer (BOIL, Oh et al. 2021, section 3).
      inner_reduction: how the support losses become a scalar, see `losses.reduce_loss`.
      query_statistics: see `learner`; the published code has "query".
      remat: trade time for memory in the inner steps, see `inner_loop.gradient_descent`; chosen by `memory.remat`.

    Returns:
      A `Method` whose meta-parameters are theta.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    lr = positive_float("method.inner_lr", inner_lr)
    true_or_false("method.first_order", first_order)
    adapts = INNER_PARAMS[one_of("method.inner_params", inner_params, INNER_PARAMS)]
    support_loss = split_loss(model.apply, objective, inner_reduction)

    def fast_params(meta_params, support, key, num_steps):
        return gradient_descent(
            lambda params: support_loss(params, support),
            meta_params,
            lr=lr,
            num_steps=num_steps,
            first_order=first_order,
            remat=remat,
            adapts=adapts,
        )

    return stepwise(
        init=lambda key, task: model.init(key, task.support.x),
        adapt=fast_params,
        num_steps=numbers_of_steps(inner_steps, eval_inner_steps, none=True),
        answer=model.apply,
        objective=objective,
        query_statistics=query_statistics,
        protocol={"inner_reduction": inner_reduction},
        varies=("shot",),
    )

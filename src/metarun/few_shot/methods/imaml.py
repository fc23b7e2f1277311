"""Implicit MAML: meta-gradients at the solution of the inner problem, whatever path led there.

Source: Rajeswaran, Finn, Kakade and Levine 2019, Meta-Learning with Implicit Gradients.
"""

from metarun.errors import non_negative_float, positive_float, positive_int
from metarun.few_shot.inner_loop import numbers_of_steps, proximal_descent, split_loss
from metarun.few_shot.learner import stepwise
from metarun.types import Method, Model


def imaml(
    *,
    model: Model,
    objective: str,
    proximity: float = 2.0,
    inner_lr: float = 0.1,
    inner_steps: int = 16,
    eval_inner_steps: int | None = None,
    cg_steps: int = 5,
    damping: float = 0.0,
    inner_reduction: str = "mean",
    query_statistics: str = "query",
) -> Method:
    """min over theta of E_task [ L_query(phi*) ], phi* = argmin over phi of L_support(phi) + lambda/2 |phi - theta|^2.

    Memory does not grow with the number of inner steps, and nothing is computed again in the backward pass.

    Args:
      model: the network.
      objective: "classification" or "regression".
      proximity: lambda, how strongly phi is held near theta: the larger, the smaller the adaptation; 2.0 for Omniglot
        in the paper.
      inner_lr: step size of the gradient descent that finds phi*.
      inner_steps: its steps in training; at least 1. The meta-gradient is right to the extent that they converge.
      eval_inner_steps: its steps in evaluation; None: as in training.
      cg_steps: steps of the conjugate gradient method that solves for the meta-gradient; 5 in the paper.
      damping: delta, with H / (lambda + delta) for H / lambda in the meta-gradient: 0 is the paper's equation, 1 its
        published code.
      inner_reduction: how the support losses become a scalar, see `losses.reduce_loss`.
      query_statistics: see `learner`.

    Returns:
      A `Method` whose meta-parameters are theta.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: equations 3 to 6, algorithms 1 and 2.
    """
    strength = positive_float("method.proximity", proximity)
    lr = positive_float("method.inner_lr", inner_lr)
    cg_steps = positive_int("method.cg_steps", cg_steps)
    damping = non_negative_float("method.damping", damping)
    support_loss = split_loss(model.apply, objective, inner_reduction)

    def solution(meta_params, support, key, num_steps):
        return proximal_descent(
            support_loss,
            meta_params,
            support,
            strength=strength,
            lr=lr,
            num_steps=num_steps,
            cg_steps=cg_steps,
            damping=damping,
        )

    return stepwise(
        init=lambda key, task: model.init(key, task.support.x),
        adapt=solution,
        num_steps=numbers_of_steps(inner_steps, eval_inner_steps),
        answer=model.apply,
        objective=objective,
        query_statistics=query_statistics,
        protocol={"inner_reduction": inner_reduction},
        varies=("shot",),
    )

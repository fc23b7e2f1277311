"""MAML whose last layer starts at the prototypes.

Source: Triantafillou et al. 2020, Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples.
"""

from metarun.errors import positive_float, true_or_false
from metarun.few_shot.inner_loop import gradient_descent, numbers_of_steps
from metarun.few_shot.learner import class_means, conditioned, flat, refuse_regression
from metarun.few_shot.losses import average, present, row_cross_entropy
from metarun.types import Method, Model


def proto_maml(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    train_way: int | None = None,
    inner_lr: float = 0.01,
    inner_steps: int = 5,
    eval_inner_steps: int | None = None,
    first_order: bool = False,
    query_statistics: str = "support",
    remat: bool = False,
) -> Method:
    """Gradient descent on the support loss, of the encoder f and of a linear layer w_k = 2 c_k, b_k = -|c_k|^2.

    With c_k the mean of f over the support set of class k, the layer starts as a prototypical network. The outer
    gradient flows through the inner steps and through the prototypes.

    Args:
      encoder: the network f, `[n, *feature]` -> `[n, *embedding]`.
      objective: "classification".
      num_outputs: the way.
      train_way: classes of a training task; None: the same.
      inner_lr: step size of the inner loop.
      inner_steps: inner steps in training; at least 1.
      eval_inner_steps: inner steps in evaluation; None: as in training; 0: the prototypical network.
      first_order: drop the second derivatives of the inner steps; the prototypes keep their gradient.
      query_statistics: see `learner`.
      remat: trade time for memory in the inner steps, see `inner_loop.gradient_descent`; chosen by `memory.remat`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: section 3, equations 1 and 2.
    """
    refuse_regression("proto_maml", objective)
    lr = positive_float("method.inner_lr", inner_lr)
    train_steps, eval_steps = numbers_of_steps(inner_steps, eval_inner_steps)
    true_or_false("method.first_order", first_order)

    def apply(params, x, reference=None):
        features = flat(encoder.apply(params["encoder"], x, reference))
        return features @ params["head"]["kernel"] + params["head"]["bias"][None]

    def read(num_steps):
        def descend(meta_params, support, key):
            x, targets, mask = support
            prototypes = class_means(flat(encoder.apply(meta_params, x, mask)), targets)
            head = {"kernel": 2 * prototypes.T, "bias": -(prototypes**2).sum(1)}

            def support_loss(params):
                outputs = present(targets, apply(params, x, mask), mask)
                return average(row_cross_entropy(outputs, targets), mask)

            return gradient_descent(
                support_loss,
                {"encoder": meta_params, "head": head},
                lr=lr,
                num_steps=num_steps,
                first_order=first_order,
                remat=remat,
            )

        return descend

    return conditioned(
        init=lambda key, task: encoder.init(key, task.support.x),
        read=read(eval_steps),
        answer=apply,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        train_read=read(train_steps),
        train_way=train_way,
        varies=("way", "shot"),
        protocol={"eval_inner_steps": eval_steps},
    )

"""Pre-training on all classes of meta-training, then a new last layer for each task.

Source: Chen, Liu, Kira, Wang and Huang 2019, A Closer Look at Few-shot Classification, section 3.2.
"""

import jax
import jax.numpy as jnp

from metarun.errors import non_negative_int, one_of, positive_float
from metarun.few_shot.inner_loop import gradient_descent
from metarun.few_shot.learner import flat, refuse_regression, stepwise, target_rows
from metarun.few_shot.losses import OBJECTIVES, average, present
from metarun.few_shot.similarity import cosine
from metarun.types import Array, Method, Model, Params

HEADS = ("linear", "cosine")


def pretrain(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    num_train_classes: int,
    head: str = "linear",
    inner_lr: float = 0.01,
    eval_inner_steps: int = 100,
    query_statistics: str = "support",
) -> Method:
    """Trains encoder f and head W to tell all classes apart; a task keeps f and descends its support loss in a new W.

    Args:
      encoder: the network f, `[n, *feature]` -> `[n, *embedding]`.
      objective: "classification".
      num_outputs: the way.
      num_train_classes: classes of meta-training, which the head of training tells apart.
      head: "linear", outputs W^T f(x) + b (Baseline), or "cosine", s cos(W_k, f(x)) (Baseline++), with s = 2 for up to
        200 classes and 10 for more, as in the published code.
      inner_lr: step size of a task's gradient descent, on the mean loss of its support set.
      eval_inner_steps: its steps.
      query_statistics: see `learner`.

    Returns:
      A `Method` that trains on classes: on the images of a training draw, support and query alike.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    refuse_regression("pretrain", objective)
    one_of("method.head", head, HEADS)
    lr = positive_float("method.inner_lr", inner_lr)
    num_steps = non_negative_int("method.eval_inner_steps", eval_inner_steps)
    score = OBJECTIVES[objective]
    init_head, apply_head = _HEADS[head]

    def embed(encoder_params, x, reference=None):
        return flat(encoder.apply(encoder_params, x, reference))

    def init(key, task):
        encoder_key, head_key = jax.random.split(key)
        encoder_params = encoder.init(encoder_key, task.support.x)
        features = embed(encoder_params, task.support.x)
        return {"encoder": encoder_params, "head": init_head(head_key, features, num_train_classes)}

    def loss(meta_params, draw, key):
        x, y, mask = jax.tree.map(lambda *parts: jnp.concatenate(parts), draw.support, draw.query)
        outputs = apply_head(meta_params["head"], embed(meta_params["encoder"], x, mask))
        mean_loss = average(score.loss(outputs, y), mask)
        return mean_loss, {"loss": mean_loss, f"classes/{score.metric}": average(score.measure(outputs, y), mask)}

    def adapt(meta_params, support, key, num_steps):
        features = embed(meta_params["encoder"], support.x, support.mask)
        new_head = init_head(key, features, num_outputs)

        def support_loss(head_params):
            targets = target_rows(support, objective, num_outputs)
            outputs = present(targets, apply_head(head_params, features), support.mask)
            return average(score.loss(outputs, support.y), support.mask)

        return meta_params["encoder"], gradient_descent(support_loss, new_head, lr=lr, num_steps=num_steps)

    def answer(state, x, reference):
        encoder_params, head_params = state
        return apply_head(head_params, embed(encoder_params, x, reference))

    return stepwise(
        init=init,
        adapt=adapt,
        num_steps=(num_steps, num_steps),
        answer=answer,
        objective=objective,
        query_statistics=query_statistics,
        trains_on="classes",
        varies=("way", "shot"),
    )._replace(loss=loss)


def _init_linear(key: Array, features: Array, num_classes: int) -> Params:
    # Zeros: the support loss is convex in the head, and no class is favoured at the start.
    return {
        "kernel": jnp.zeros((features.shape[1], num_classes), features.dtype),
        "bias": jnp.zeros((num_classes,), features.dtype),
    }


def _apply_linear(head_params: Params, features: Array) -> Array:
    return features @ head_params["kernel"] + head_params["bias"][None]


def _init_cosine(key: Array, features: Array, num_classes: int) -> Params:
    size = features.shape[1]
    return {"kernel": jax.random.normal(key, (size, num_classes), features.dtype) / size**0.5}


def _apply_cosine(head_params: Params, features: Array) -> Array:
    kernel = head_params["kernel"]
    scale = 2 if kernel.shape[1] <= 200 else 10
    return scale * cosine(features, kernel.T)


_HEADS = {"linear": (_init_linear, _apply_linear), "cosine": (_init_cosine, _apply_cosine)}

"""Prototypical networks.

Source: Snell, Swersky and Zemel 2017, Prototypical Networks for Few-shot Learning.
"""

from metarun.errors import one_of
from metarun.few_shot.learner import class_means, conditioned, flat, refuse_regression
from metarun.few_shot.similarity import SIMILARITIES
from metarun.types import Method, Model


def protonet(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    train_way: int | None = None,
    distance: str = "euclidean",
    query_statistics: str = "support",
) -> Method:
    """p(y = k | x) = softmax over k of -d(f(x), c_k), with c_k the mean of f over the support set of class k.

    Args:
      encoder: the network f, `[n, *feature]` -> `[n, *embedding]`.
      objective: "classification".
      num_outputs: the way.
      train_way: classes of a training task; None: the same. The paper trains on more than it tests.
      distance: d: "euclidean", the squared Euclidean distance (the paper's choice), or "cosine", one minus the cosine.
      query_statistics: see `learner`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: equations 1 and 2.
    """
    refuse_regression("protonet", objective)
    similarity = SIMILARITIES[one_of("method.distance", distance, SIMILARITIES)]

    def read(meta_params, support, key):
        return meta_params, class_means(flat(encoder.apply(meta_params, support.x, support.mask)), support.y)

    def answer(state, x, reference):
        meta_params, prototypes = state
        return similarity(flat(encoder.apply(meta_params, x, reference)), prototypes)

    return conditioned(
        init=lambda key, task: encoder.init(key, task.support.x),
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        train_way=train_way,
        varies=("way", "shot"),
    )

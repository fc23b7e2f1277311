"""Prototypical networks.

Source: Snell, Swersky and Zemel 2017, Prototypical Networks for Few-shot Learning.
"""

import jax.numpy as jnp

from metarun.errors import one_of
from metarun.learner import class_means, conditioned, flat, refuse_regression
from metarun.types import Method, Model

DISTANCES = ("euclidean", "cosine")


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
      distance: "euclidean", the squared Euclidean distance (the paper's choice), or "cosine", one minus the cosine.
      query_statistics: see `learner`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: equations 1 and 2.
    """
    refuse_regression("protonet", objective)
    one_of("method.distance", distance, DISTANCES)

    def embed(meta_params, x, reference=None):
        features = flat(encoder.apply(meta_params, x, reference))
        if distance == "cosine":
            features = features / jnp.sqrt((features**2).sum(1, keepdims=True) + 1e-12)
        return features

    def read(meta_params, x, targets, key):
        return meta_params, class_means(embed(meta_params, x), targets)

    def answer(state, x, reference):
        meta_params, prototypes = state
        features = embed(meta_params, x, reference)
        if distance == "cosine":
            return features @ prototypes.T / jnp.sqrt((prototypes**2).sum(1) + 1e-12)[None]
        # |f(x) - c_k|^2 without |f(x)|^2, which is the same for all k.
        return 2 * features @ prototypes.T - (prototypes**2).sum(1)[None]

    return conditioned(
        init=lambda key, task: encoder.init(key, task.support.x),
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        train_way=train_way,
    )

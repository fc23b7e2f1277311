"""Relation networks.

Source: Sung, Yang, Zhang, Xiang, Torr and Hospedales 2018, Learning to Compare: Relation Network for Few-Shot Learning.
"""

import jax
import jax.numpy as jnp

from metarun.errors import ConfigError, one_of
from metarun.few_shot.learner import conditioned, refuse_regression
from metarun.few_shot.losses import ABSENT
from metarun.models.relation_module import relation_module
from metarun.types import Array, Method, Model

LOSSES = ("mse", "cross_entropy")


def relation(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    train_way: int | None = None,
    hidden: int = 8,
    norm: str = "batch",
    loss: str = "mse",
    query_statistics: str = "support",
) -> Method:
    """The score of class k for x is g(sum of f over the support set of class k, f(x)), with g a learnt comparison.

    Args:
      encoder: the network f, `[n, *feature]` -> `[n, height, width, channel]`.
      objective: "classification".
      num_outputs: the way.
      train_way: classes of a training task; None: the same.
      hidden: units of the hidden layer of g.
      norm: normalisation within g. "batch" under `query_statistics` "support" uses the statistics of the pairs of
        support examples and classes.
      loss: "mse", the squared error of sigmoid scores against 1 for the class and 0 for others (the paper's), or
        "cross_entropy" of the scores before the sigmoid.
      query_statistics: see `learner`; in the published code all pairs of an episode share their statistics, which is
        "query", and its figures are transductive.

    Raises:
      ConfigError: for a value that is not allowed, or for an encoder whose outputs are not feature maps.

    Source: equations 1 and 2.
    """
    refuse_regression("relation", objective)
    one_of("method.loss", loss, LOSSES)
    compare = relation_module(hidden=hidden, norm=norm)

    def class_sums(features, targets):
        return jnp.einsum("nk,nhwc->khwc", targets, features)

    def init(key, task):
        encoder_key, relation_key = jax.random.split(key)
        params = encoder.init(encoder_key, task.support.x)
        features = encoder.apply(params, task.support.x)
        if features.ndim != 4:
            got = f"(features of shape {features.shape[1:]})"
            raise ConfigError("model", got, "a network of feature maps, such as conv4, for method=relation")
        return {"encoder": params, "relation": compare.init(relation_key, _pairs(features, features))}

    def read(meta_params, support, key):
        sums = class_sums(encoder.apply(meta_params["encoder"], support.x, support.mask), support.y)
        return meta_params, sums, (support.y > 0).any(0)

    def answer(state, x, reference):
        meta_params, classes, there = state
        way = classes.shape[0]
        pairs = _pairs(classes, encoder.apply(meta_params["encoder"], x, reference))
        # The pairs of the reference rows come first.
        if isinstance(reference, int):
            reference = reference * way
        elif reference is not None:
            reference = (reference[:, None] & there[None]).reshape(-1)
        logits = compare.apply(meta_params["relation"], pairs, reference)
        outputs = logits.reshape(-1, way)
        return jax.nn.sigmoid(outputs) if loss == "mse" else outputs

    return conditioned(
        init=init,
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        loss=_mse if loss == "mse" else None,
        train_way=train_way,
        varies=("way", "shot"),
    )


def _pairs(classes: Array, queries: Array) -> Array:
    """`[way, h, w, c]`, `[n, h, w, c]` -> `[n * way, h, w, 2 c]`, the pairs of each query side by side."""
    shape = queries.shape[0], *classes.shape
    pairs = [jnp.broadcast_to(classes[None], shape), jnp.broadcast_to(queries[:, None], shape)]
    return jnp.concatenate(pairs, -1).reshape(-1, *shape[2:4], 2 * shape[4])


def _mse(scores: Array, y: Array) -> Array:
    there = scores > ABSENT
    errors = jnp.square(jnp.where(there, scores, 0) - jax.nn.one_hot(y, scores.shape[1], dtype=scores.dtype))
    return errors.sum(1) / there.sum(1).astype(errors.dtype)

"""Matching networks.

Source: Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016, Matching Networks for One Shot Learning.
"""

import jax
import jax.numpy as jnp

from metarun.errors import positive_float, positive_int, true_or_false
from metarun.few_shot.learner import conditioned, flat, refuse_regression
from metarun.few_shot.losses import ABSENT
from metarun.few_shot.similarity import cosine
from metarun.models.full_context import full_context as full_context_embeddings
from metarun.types import Method, Model


def matching(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    train_way: int | None = None,
    full_context: bool = False,
    context_steps: int = 5,
    sharpness: float = 1.0,
    query_statistics: str = "support",
) -> Method:
    """p(y | x) = sum_i a(x, x_i) y_i, with a the softmax over the support set of cos(f(x), g(x_i)).

    The outputs are log-probabilities.

    Args:
      encoder: the network f' = g', `[n, *feature]` -> `[n, *embedding]`.
      objective: "classification".
      num_outputs: the way.
      train_way: classes of a training task; None: the same.
      full_context: whether f and g depend on the whole support set, see `models.full_context`; otherwise they are
        `encoder` itself. The context of g reads the support set as a sequence, so its order then matters.
      context_steps: K, steps in which f attends to the support set; read under `full_context` alone.
      sharpness: factor of the cosine before the softmax; 1 in the paper, with which no probability exceeds
        e^2 / (e^2 + m - 1) for m support examples.
      query_statistics: see `learner`.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: equations 1 and 2; full context: sections 2.1.1 and 2.1.2.
    """
    refuse_regression("matching", objective)
    true_or_false("method.full_context", full_context)
    sharpness = positive_float("method.sharpness", sharpness)
    context = full_context_embeddings(positive_int("method.context_steps", context_steps)) if full_context else None

    def init(key, task):
        encoder_key, context_key = jax.random.split(key)
        params = {"encoder": encoder.init(encoder_key, task.support.x)}
        if context:
            params["context"] = context.init(context_key, flat(encoder.apply(params["encoder"], task.support.x)))
        return params

    def read(meta_params, support, key):
        features = flat(encoder.apply(meta_params["encoder"], support.x, support.mask))
        if context:
            features = context.embed_support(meta_params["context"], features)
        return meta_params, support._replace(x=features)

    def answer(state, x, reference):
        meta_params, (support, targets, mask) = state
        query = flat(encoder.apply(meta_params["encoder"], x, reference))
        if context:
            query = context.embed_query(meta_params["context"], query, support)
        logits = sharpness * cosine(query, support)
        if mask is not None:
            logits = jnp.where(mask[None], logits, ABSENT)
            # Of a class that is not there the sum would be 0, whose logarithm has no gradient.
            targets = jnp.where((targets > 0).any(0)[None], targets, 1)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits)[:, :, None], 1, b=targets[None])

    return conditioned(
        init=init,
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        train_way=train_way,
        varies=() if full_context else ("way", "shot"),
    )

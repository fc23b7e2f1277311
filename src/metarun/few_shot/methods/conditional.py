"""Conditional networks: one network takes the support set in beside the query.

Sources: van den Oord et al. 2016, WaveNet; Garnelo et al. 2018, Conditional Neural Processes.
"""

import jax
import jax.numpy as jnp

from metarun.errors import one_of, positive_int
from metarun.few_shot.learner import class_means
from metarun.few_shot.sequence import beside, longest, sequence_learner
from metarun.models import temporal
from metarun.models.mlp import mlp
from metarun.types import Method, Model, SequenceModel

BODIES = ("wavenet", "neural_process")


def conditional(
    *,
    encoder: Model,
    objective: str,
    num_outputs: int,
    shot: int,
    train_shot: int | None = None,
    body: str = "neural_process",
    embedding: int = 64,
    filters: int = 128,
    query_statistics: str = "support",
    numberings: int = 1,
) -> Method:
    """outputs = g((x_1, y_1), ..., (x_k, y_k), (x, ?)).

    Args:
      encoder: features of an input; a linear layer to `embedding` follows.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      shot: support examples of each class.
      train_shot: the same in training; None: as in test.
      body: "wavenet", gated causal dilated convolutions over the sequence, which see the whole of it; or
        "neural_process", whose answers do not depend on the order of the support set.
      embedding: size of an input's embedding.
      filters: size of every layer of the body.
      query_statistics: see `learner`.
      numberings: see `sequence.renumbered`.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    filters = positive_int("method.filters", filters)
    if one_of("method.body", body, BODIES) == "wavenet":
        num_positions = longest(objective, num_outputs, shot, train_shot)
        network = temporal.wavenet(num_outputs=num_outputs, num_positions=num_positions, filters=filters)
    else:
        network = _neural_process(num_outputs, filters, by_class=objective == "classification")
    return sequence_learner(
        model=network,
        encoder=encoder,
        embedding=embedding,
        labels=beside,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
        numberings=numberings,
    )


def _neural_process(num_outputs: int, size: int, *, by_class: bool) -> SequenceModel:
    """g(r, (x, ?)) with r the mean of h(x_i, y_i), or their means within each class side by side.

    Source: Garnelo et al. 2018, equations 2 to 4; by class, section 4.3.
    """
    h = mlp(num_outputs=size, hidden=(size, size))
    g = mlp(num_outputs=num_outputs, hidden=(size, size))

    def read(params, rows):
        # A row is an embedding, a target and a flag, see `beside`.
        targets = rows[:, -num_outputs - 1 : -1]
        weights = targets if by_class else jnp.ones_like(targets[:, :1])
        return class_means(h.apply(params["h"], rows), weights).reshape(-1)

    def beside_context(context, ends):
        return jnp.concatenate([jnp.broadcast_to(context, (ends.shape[0], context.size)), ends], 1)

    def init(key, rows, ends):
        h_key, g_key = jax.random.split(key)
        contexts = jnp.zeros((num_outputs if by_class else 1) * size, rows.dtype)
        return {"h": h.init(h_key, rows), "g": g.init(g_key, beside_context(contexts, ends))}

    return SequenceModel(
        init=init,
        read=read,
        answer=lambda params, context, ends: g.apply(params["g"], beside_context(context, ends)),
    )

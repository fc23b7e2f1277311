"""A support set read as a sequence (x_1, y_1), ..., (x_k, y_k), (x, ?), in the order in which it comes."""

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metarun.errors import positive_int
from metarun.few_shot.learner import conditioned, flat
from metarun.models.mlp import mlp
from metarun.types import Array, Method, Model, Params, SequenceModel, Task


class Read(NamedTuple):
    """What a learner has after reading a support set.

    Attributes:
      meta_params: its parameters.
      memory: what the sequence model keeps of the support set.
      label: `[label_size]`, what stands beside a query's features.
    """

    meta_params: Params
    memory: Any
    label: Array


def beside(targets: Array) -> tuple[Array, Array]:
    """Each target beside its own input; beside a query zeros, and a flag that tells them from a target of zero.

    Args:
      targets: `[k, num_outputs]`.

    Returns:
      labels `[k, num_outputs + 1]` of the sequence, and `[num_outputs + 1]` of a query.
    """
    return jnp.pad(targets, ((0, 0), (0, 1))), jnp.zeros(targets.shape[1] + 1, targets.dtype).at[-1].set(1)


def offset(targets: Array) -> tuple[Array, Array]:
    """Each target one position after its input, so that an input can be answered where it comes: (x_t, y_{t-1}).

    Args:
      targets: `[k, num_outputs]`.

    Returns:
      labels `[k, num_outputs]` of the sequence, zeros first, and `[num_outputs]` of a query, the last target.

    Source: Santoro et al. 2016, Meta-Learning with Memory-Augmented Neural Networks, section 2.
    """
    labels = jnp.pad(targets, ((1, 0), (0, 0)))
    return labels[:-1], labels[-1]


def longest(objective: str, num_outputs: int, shot: int, train_shot: int | None) -> int:
    """Positions of the longest sequence of a run, in training or test: a support set and a query."""
    return max(shot, train_shot or shot) * (num_outputs if objective == "classification" else 1) + 1


def sequence_learner(
    *,
    model: SequenceModel,
    encoder: Model,
    embedding: int,
    labels: Callable[[Array], tuple[Array, Array]],
    objective: str,
    num_outputs: int,
    query_statistics: str,
    numberings: int = 1,
) -> Method:
    """A learner that reads the support set as a sequence, and answers each query as its next and last element.

    Queries are alternatives for the last position: none sees another, and no query's target is an input.

    Args:
      model: the network over the sequence, whose rows are an input's embedding and a label.
      encoder: features of an input, `[n, *feature]` -> `[n, *features]`.
      embedding: size of the linear layer after it. One-hot labels are scaled to the length of such an embedding.
      labels: targets `[k, num_outputs]` -> labels `[k, label_size]` of the support set and `[label_size]` of a query;
        `beside` or `offset`.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      query_statistics: see `learner.learner`.
      numberings: see `renumbered`.

    Returns:
      A `Method` whose meta-parameters are {"encoder", "embedding", "sequence"} and whose adapted state is a `Read`.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    linear = mlp(num_outputs=positive_int("method.embedding", embedding), hidden=())
    # Beside an embedding, whose length is about sqrt(embedding), a one-hot label of length 1 is hardly seen: with labels
    # of the same length, learning takes a quarter of the steps. A regression's target is an entry among others.
    length = sqrt(embedding) if objective == "classification" else 1.0

    def scaled_labels(targets):
        seen, asked = labels(targets)
        return length * seen, length * asked

    def embed(meta_params, x, reference=None):
        return linear.apply(meta_params["embedding"], flat(encoder.apply(meta_params["encoder"], x, reference)))

    def init(key, task):
        encoder_key, embedding_key, sequence_key = jax.random.split(key, 3)
        x = task.support.x
        meta_params = {"encoder": encoder.init(encoder_key, x)}
        features = flat(encoder.apply(meta_params["encoder"], x))
        meta_params["embedding"] = linear.init(embedding_key, features)
        seen, _ = scaled_labels(jnp.zeros((x.shape[0], num_outputs), x.dtype))
        rows = jnp.concatenate([embed(meta_params, x), seen], 1)
        return {**meta_params, "sequence": model.init(sequence_key, rows, rows)}

    def read(meta_params, x, targets, key):
        seen, asked = scaled_labels(targets)
        rows = jnp.concatenate([embed(meta_params, x), seen], 1)
        return Read(meta_params, model.read(meta_params["sequence"], rows), asked)

    def answer(state, x, reference):
        # The reference rows serve the encoder's statistics; they are no queries, and `learner` drops their answers.
        skipped = reference or 0
        features = embed(state.meta_params, x, reference)[skipped:]
        asked = jnp.broadcast_to(state.label, (features.shape[0], state.label.size))
        ends = jnp.concatenate([features, asked], 1)
        return jnp.pad(model.answer(state.meta_params["sequence"], state.memory, ends), ((skipped, 0), (0, 0)))

    method = conditioned(
        init=init,
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=query_statistics,
    )
    return renumbered(method, objective, num_outputs, numberings)


def renumbered(method: Method, objective: str, way: int, numberings: int) -> Method:
    """The method, trained by its mean loss over `numberings` random numberings of a task's classes.

    To a network that reads labels, a task with its classes numbered anew is another task: it has to learn that the
    numbers mean nothing. The images stay as they are and pass the encoder once, so that these tasks cost what comes
    after it.

    Args:
      objective: of the data; a regression has no classes, and its method stays as it is.
      way: number of classes.
      numberings: of each training task; 1: that which it comes with.

    Raises:
      ConfigError: for a number that is not a whole number of at least 1.
    """
    if positive_int("method.numberings", numberings) == 1 or objective != "classification":
        return method

    def mean_loss(meta_params, task, key):
        def loss(key):
            number_key, loss_key = jax.random.split(key)
            number = jax.random.permutation(number_key, way)
            numbered = Task(*(split._replace(y=number[split.y]) for split in task))
            return method.loss(meta_params, numbered, loss_key)

        return jax.tree.map(
            lambda of_numbering: of_numbering.mean(0), jax.vmap(loss)(jax.random.split(key, numberings))
        )

    return method._replace(loss=mean_loss)

"""A support set read as a sequence (x_1, y_1), ..., (x_k, y_k), (x, ?), in the order in which it comes."""

from collections import abc
from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metarun.errors import positive_range
from metarun.few_shot.in_context import Reading, embedder, in_context
from metarun.types import Array, Method, Model, SequenceModel

# A number, or the ends of a range.
Shot = int | abc.Sequence[int]
_LEAST = 1e-6  # added to the mean square of an embedding, so that the direction of zeros has a gradient


class Sequence(NamedTuple):
    """A support set, read.

    Attributes:
      read: what the sequence model keeps of it.
      label: `[label_size]`, what stands beside a query's embedding.
    """

    read: Any
    label: Array


def beside(targets: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Each target beside its own input; beside a query zeros, and a flag that tells them from a target of zero.

    Args:
      targets: `[k, num_outputs]`.
      mask: which are of examples.

    Returns:
      labels `[k, num_outputs + 1]` of the sequence, and `[num_outputs + 1]` of a query.
    """
    return jnp.pad(targets, ((0, 0), (0, 1))), jnp.zeros(targets.shape[1] + 1, targets.dtype).at[-1].set(1)


def offset(targets: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Each target one position after its input, so that an input can be answered where it comes: (x_t, y_{t-1}).

    Args:
      targets: `[k, num_outputs]`.
      mask: which are of examples, the first ones.

    Returns:
      labels `[k, num_outputs]` of the sequence, zeros first, and `[num_outputs]` of a query, the last target.

    Source: Santoro et al. 2016, Meta-Learning with Memory-Augmented Neural Networks, section 2.
    """
    labels = jnp.pad(targets, ((1, 0), (0, 0)))
    return labels[:-1], labels[-1] if mask is None else labels[mask.sum()]


def longest(objective: str, num_outputs: int, shot: Shot, train_shot: Shot | None) -> int:
    """Positions of the longest sequence of a run, in training or test: a support set and a query."""
    most = max(positive_range("shot", shot)[1], positive_range("train_shot", train_shot or shot)[1])
    return most * (num_outputs if objective == "classification" else 1) + 1


def normal(embeddings: Array) -> Array:
    """Embeddings `[n, size]` scaled to a mean square of 1 each, so that a network over them sees their directions alone."""
    return embeddings / jnp.sqrt((embeddings**2).mean(1, keepdims=True) + _LEAST)


def sequence_learner(
    *,
    model: SequenceModel,
    encoder: Model,
    labels: Callable[[Array, Array | None], tuple[Array, Array]],
    objective: str,
    num_outputs: int,
    reading: Reading,
    support_outputs: Callable[[Any], Array] | None = None,
) -> Method:
    """A learner that reads the support set as a sequence, and answers each query as its next and last element.

    Queries are alternatives for the last position: none sees another, and no query's target is an input.

    Args:
      model: the network over the sequence, whose rows are an input's embedding and a label.
      encoder: features of an input, `[n, *feature]` -> `[n, *features]`. A linear layer makes embeddings of them, which the
        network sees scaled to one length, see `normal`.
      labels: targets `[k, num_outputs]` and their mask -> labels `[k, label_size]` of the support set and `[label_size]` of a query;
        `beside` or `offset`.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      reading: how it is trained.
      support_outputs: answers on the way, of the model's memory; see `in_context`.

    Returns:
      A `Method` whose meta-parameters are {"encoder", "embedding", "sequence"}.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    embed, init_embedding = embedder(encoder, reading.embedding)
    # Beside an embedding, whose length is sqrt(embedding), a one-hot label of length 1 is hardly seen: with labels of the
    # same length, learning takes a quarter of the steps. A regression's target is an entry among others.
    length = sqrt(reading.embedding) if objective == "classification" else 1.0

    def rows(embeddings, labels):
        return jnp.concatenate([normal(embeddings), length * labels], 1)

    def init(key, task):
        encoder_key, embedding_key, sequence_key = jax.random.split(key, 3)
        x = task.support.x
        meta_params = init_embedding(encoder_key, embedding_key, x)
        seen, _ = labels(jnp.zeros((x.shape[0], num_outputs), x.dtype), None)
        first = rows(embed(meta_params, x), seen)
        return {**meta_params, "sequence": model.init(sequence_key, first, first)}

    def read(meta_params, support):
        embeddings, targets, mask = support
        seen, asked = labels(targets, mask)
        masked = () if mask is None else (mask,)
        return Sequence(model.read(meta_params["sequence"], rows(embeddings, seen), *masked), asked)

    def answer(meta_params, sequence, embeddings):
        asked = jnp.broadcast_to(sequence.label, (embeddings.shape[0], sequence.label.size))
        return model.answer(meta_params["sequence"], sequence.read, rows(embeddings, asked))

    return in_context(
        init=init,
        embed=embed,
        read=read,
        answer=answer,
        objective=objective,
        num_outputs=num_outputs,
        reading=reading,
        support_outputs=None if support_outputs is None else lambda sequence: support_outputs(sequence.read),
    )

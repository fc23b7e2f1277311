"""How learners are trained that read a support set in context, having its embeddings and its labels as inputs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metarun.config.flat_keys import hold
from metarun.errors import ConfigError, non_negative_float, one_of, positive_int
from metarun.few_shot.learner import STATISTICS, class_means, conditioned, encoded, flat, target_rows
from metarun.few_shot.losses import OBJECTIVES, average, cross_entropy, present
from metarun.few_shot.similarity import euclidean
from metarun.models.mlp import mlp
from metarun.types import Array, Method, Model, Params, Reference, Split, Task


@dataclass(frozen=True)
class Reading:
    """How a learner that reads labels is trained: on many small tasks of each draw, and with a loss of its embedding.

    To a network that reads labels, a task with its classes numbered anew is another task: it has to learn that the
    numbers mean nothing. Until it has, its loss stays on a plateau, the shorter the more tasks there are in a step
    (Kirsch et al. 2022). So a draw of `train_way` classes is embedded once, and `numberings` tasks are cut from it, each
    of some of the classes, in an order and a numbering of its own. They cost what comes after the embedding.

    On the plateau nothing tells the embedding what is alike. The loss of nearest class means does, from the first step.

    Attributes:
      embedding: size of an input's embedding.
      query_statistics: see `learner.learner`.
      numberings: tasks that are cut from each draw; of 1, and without `train_way`, the draw is the task, as it comes. A
        regression has no classes, and one task.
      train_way: classes of a draw, at least as many as of a task; None: as many.
      embedding_loss: weight of `nearest_mean_loss`, over all classes of the draw; a regression has none.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Kirsch et al. 2022, General-Purpose In-Context Learning by Meta-Learning Transformers, section 4.
    """

    embedding: int = 64
    query_statistics: str = "support"
    numberings: int = 1
    train_way: int | None = None
    embedding_loss: float = 0.0

    def __post_init__(self) -> None:
        hold(
            self,
            embedding=positive_int("method.embedding", self.embedding),
            query_statistics=one_of("method.query_statistics", self.query_statistics, STATISTICS),
            numberings=positive_int("method.numberings", self.numberings),
            embedding_loss=non_negative_float("method.embedding_loss", self.embedding_loss),
        )


class Read(NamedTuple):
    """What a learner has after reading a support set.

    Attributes:
      meta_params: its parameters.
      memory: what it keeps of the support set.
    """

    meta_params: Params
    memory: Any


def embedder(encoder: Model, size: int) -> tuple[Callable[..., Array], Callable[[Array, Array, Array], Params]]:
    """An embedding: the features of an input, and a linear layer to `size` numbers.

    Args:
      encoder: `x: [n, *feature] -> [n, *features]`.
      size: of an embedding.

    Returns:
      `embed`, see `in_context`, whose reference may be left out; and `(encoder_key, embedding_key, x) -> {"encoder", "embedding"}`, the part of the
      meta-parameters that it reads.
    """
    linear = mlp(num_outputs=size, hidden=())

    def embed(meta_params, x, reference=None):
        return linear.apply(meta_params["embedding"], flat(encoder.apply(meta_params["encoder"], x, reference)))

    def init(encoder_key, embedding_key, x):
        params = encoder.init(encoder_key, x)
        return {"encoder": params, "embedding": linear.init(embedding_key, flat(encoder.apply(params, x)))}

    return embed, init


def in_context(
    *,
    init: Callable[[Array, Task], Params],
    embed: Callable[[Params, Array, Reference], Array],
    read: Callable[[Params, Split], Any],
    answer: Callable[[Params, Any, Array], Array],
    objective: str,
    num_outputs: int,
    reading: Reading,
    support_outputs: Callable[[Any], Array] | None = None,
    train_read: Callable[[Params, Split], Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    varies: Collection[str] = ("way", "shot"),
) -> Method:
    """A learner that sees inputs through their embeddings alone, and the labels of the support set beside them.

    Args:
      init: as in `Method`.
      embed: `(meta_params, x: [n, *feature], reference) -> [n, embedding]`, `reference` as in `Model.apply`.
      read: `(meta_params, support) -> memory`, of embeddings `[k, embedding]` and targets `[k, num_outputs]`.
      answer: `(meta_params, memory, embeddings: [n, embedding]) -> outputs: [n, num_outputs]`.
      objective: "classification" or "regression".
      num_outputs: the way, or the size of a regression target.
      reading: how it is trained.
      support_outputs: `memory -> [k, num_outputs]`, answers to the support inputs, each given before its own label was
        read: the loss is then the mean over them and one query. None: over the queries.
      train_read: `read` in training; None: the same.
      protocol, varies: as in `learner.learner`.

    Raises:
      ConfigError: a draw has fewer classes than a task.
    """
    classification = objective == "classification"
    score, statistics = OBJECTIVES[objective], reading.query_statistics
    classes = reading.train_way or num_outputs
    if classification and classes < num_outputs:
        raise ConfigError(
            "train_way", classes, f"{num_outputs} or more, the way: tasks are cut from the classes of a draw"
        )

    def answered(state, x, reference):
        # The reference rows serve the encoder's statistics; they are no queries, and `learner` drops their answers.
        skipped = reference if isinstance(reference, int) else 0
        outputs = answer(state.meta_params, state.memory, embed(state.meta_params, x, reference)[skipped:])
        return jnp.pad(outputs, ((skipped, 0), (0, 0)))

    method = conditioned(
        init=init,
        read=lambda params, support, key: Read(
            params, read(params, support._replace(x=embed(params, support.x, support.mask)))
        ),
        answer=answered,
        objective=objective,
        num_outputs=num_outputs,
        query_statistics=statistics,
        protocol=protocol,
        varies=varies,
    )

    def loss_of(meta_params, task):
        """Of a task whose inputs are embeddings."""
        (_, y, mask), query = task.support, task.query
        targets = target_rows(task.support, objective, num_outputs)
        there = lambda outputs: present(targets, outputs, mask) if classification else outputs
        memory = (train_read or read)(meta_params, task.support._replace(y=targets))
        outputs = there(answer(meta_params, memory, query.x))
        loss = average(score.loss(outputs, query.y), query.mask)
        if support_outputs is not None:
            losses = score.loss(there(support_outputs(memory)), y)
            count = losses.size if mask is None else mask.sum().astype(losses.dtype)
            loss = (count * average(losses, mask) + loss) / (count + 1)
        return {"loss": loss, f"query/{score.metric}": average(score.measure(outputs, query.y), query.mask)}

    def loss(meta_params, task, key):
        draw = encoded(lambda x, reference: embed(meta_params, x, reference), task, statistics)
        if task.support.mask is not None and classes > num_outputs:
            raise ConfigError("train_way", classes, "null where way or shot is a range, for this method")
        if classification and (reading.numberings > 1 or classes > num_outputs):
            cut = lambda key: loss_of(meta_params, subtask(key, draw, num_outputs, classes))
            each = jax.vmap(cut)(jax.random.split(key, reading.numberings))
            metrics = jax.tree.map(lambda values: values.mean(0), each)
        else:
            metrics = loss_of(meta_params, draw)
        if not (classification and reading.embedding_loss):
            return metrics["loss"], metrics
        of_embedding = nearest_mean_loss(draw, classes)
        return metrics["loss"] + reading.embedding_loss * of_embedding, {**metrics, "embedding_loss": of_embedding}

    return method._replace(loss=loss)


def subtask(key: Array, draw: Task, way: int, classes: int) -> Task:
    """A task of `way` of the `classes` classes of a draw, numbered at random, each of its sets in a random order.

    Args:
      key: of the choice.
      draw: labels in [0, classes), each as often in a set as any other; or, with a mask, those of the `classes` that it has.
      way: classes of the task.
      classes: those of the draw.
    """
    number_key, *order_keys = jax.random.split(key, 3)
    number = jax.random.permutation(number_key, classes)  # those from `way` on are not of the task
    if draw.support.mask is not None:
        there = target_rows(draw.support, "classification", classes).any(0)
        number = jnp.argsort(jnp.argsort(jnp.where(there, number, classes)))

    def chosen(key, split):
        x, y, mask = split
        y = number[y]
        of_it = y < way if mask is None else mask
        rows = jnp.argsort(jnp.where(of_it, jax.random.uniform(key, y.shape), 2))
        rows = rows if mask is not None else rows[: way * (y.size // classes)]
        return jax.tree.map(lambda part: part[rows], Split(x, y, mask))

    return Task(*map(chosen, order_keys, draw))


def nearest_mean_loss(draw: Task, classes: int) -> Array:
    """Mean over the queries of -log softmax over k of -|e - c_k|^2 at their class; c_k is the mean of class k's support.

    Args:
      draw: embeddings `[n, size]`, and labels in [0, classes).
      classes: how many.

    Source: Snell et al. 2017, Prototypical Networks, equation 2.
    """
    targets = target_rows(draw.support, "classification", classes)
    outputs = present(targets, euclidean(draw.query.x, class_means(draw.support.x, targets)), draw.support.mask)
    return average(cross_entropy(outputs, draw.query.y), draw.query.mask)

"""What meta-learners have in common that read a support set, answer queries, and are trained by their answers."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metarun.errors import ConfigError, one_of
from metarun.few_shot.losses import OBJECTIVES, average, present
from metarun.types import Array, Method, Metrics, Params, Reference, Split, Task

STATISTICS = ("query", "support", "each")


class Adapted(NamedTuple):
    """A learner that has seen a support set.

    Attributes:
      state: whatever the method adapts: fast weights, prototypes, generated weights, a recurrent state, ...
      reference: support inputs `[n, *feature]` by whose statistics queries are normalised, or `[0, *feature]`.
      support_mask: which rows of the support set are examples, `[n]` bool; None: all.
      labels: of the support set, `[n]`, where it has a mask and labels; else None.
    """

    state: Any
    reference: Array
    support_mask: Array | None = None
    labels: Array | None = None


def learner(
    *,
    init: Callable[[Array, Task], Params],
    adapt: Callable[[Params, Split, Array], Any],
    answer: Callable[[Any, Array, Reference], Array],
    unadapted: Callable[[Params, Split, Array], Any],
    objective: str,
    query_statistics: str,
    loss: Callable[[Array, Array], Array] | None = None,
    train_adapt: Callable[[Params, Split, Array], Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    trains_on: str = "tasks",
    varies: Collection[str] = (),
) -> Method:
    """A method that is trained by the mean loss of its answers to the queries.

    Args:
      init: as in `Method`.
      adapt: `(meta_params, support, key) -> state`.
      answer: `(state, x: [n, *feature], reference) -> outputs: [n, num_outputs]`; `reference` as in `Model.apply`.
      unadapted: as `adapt`, the state in which it starts, having seen no label.
      objective: "classification" or "regression".
      query_statistics: which set's statistics normalise the queries: "query", the queries themselves (transductive:
        the answer to one depends on the others); "support"; or "each", the support set and that one query together
        (Nichol et al. 2018's protocol without transduction).
      loss: `(outputs: [n, num_outputs], y) -> [n]`, whose mean over the queries is trained; None: the objective's.
      train_adapt: `adapt` in training; None: the same.
      protocol: conventions of evaluation beside `query_statistics`.
      trains_on, varies: as in `Method`.

    Raises:
      ConfigError: for another value of `query_statistics`.
    """
    judged = query_loss(answer=answer, objective=objective, query_statistics=query_statistics, loss=loss)
    ready = partial(_ready, objective, query_statistics)

    def adapted(adapt):
        return lambda meta_params, support, key: ready(adapt(meta_params, support, key), support)

    def outer_loss(meta_params, task, key):
        return judged((train_adapt or adapt)(meta_params, task.support, key), task)

    return Method(
        init=init,
        adapt=adapted(adapt),
        predict=partial(_predict, answer, query_statistics),
        loss=outer_loss,
        unadapted=adapted(unadapted),
        protocol={"query_statistics": query_statistics, **(protocol or {})},
        trains_on=trains_on,
        varies=varies,
    )


def query_loss(
    *,
    answer: Callable[[Any, Array, Reference], Array],
    objective: str,
    query_statistics: str,
    loss: Callable[[Array, Array], Array] | None = None,
) -> Callable[[Any, Task], tuple[Array, Metrics]]:
    """Returns `(state, task) -> (loss, metrics)`, of what a learner in that state answers to the task's queries.

    Args:
      answer, objective, query_statistics, loss: as in `learner`.

    Raises:
      ConfigError: for another value of `query_statistics`.
    """
    one_of("method.query_statistics", query_statistics, STATISTICS)
    score = OBJECTIVES[objective]

    def judged(state, task):
        adapted, (x, y, mask) = _ready(objective, query_statistics, state, task.support), task.query
        outputs = _predict(answer, query_statistics, adapted, x, mask)
        mean_loss = average((loss or score.loss)(outputs, y), mask)
        return mean_loss, {"loss": mean_loss, f"query/{score.metric}": average(score.measure(outputs, y), mask)}

    return judged


def stepwise(
    *,
    init: Callable[[Array, Task], Params],
    adapt: Callable[[Params, Split, Array, int], Any],
    num_steps: tuple[int, int],
    answer: Callable[[Any, Array, Reference], Array],
    objective: str,
    query_statistics: str,
    protocol: Mapping[str, Any] | None = None,
    trains_on: str = "tasks",
    varies: Collection[str] = (),
) -> Method:
    """A learner that adapts in steps, and has seen no label before the first.

    Args:
      init, answer, objective, query_statistics, protocol, trains_on, varies: as in `learner`.
      adapt: `(meta_params, support, key, num_steps) -> state`.
      num_steps: of training and of evaluation.
    """
    train_steps, eval_steps = num_steps

    def of(num_steps):
        return lambda meta_params, support, key: adapt(meta_params, support, key, num_steps)

    return learner(
        init=init,
        adapt=of(eval_steps),
        answer=answer,
        unadapted=of(0),
        objective=objective,
        query_statistics=query_statistics,
        train_adapt=of(train_steps),
        protocol={"eval_inner_steps": eval_steps, **(protocol or {})},
        trains_on=trains_on,
        varies=varies,
    )


def conditioned(
    *,
    init: Callable[[Array, Task], Params],
    read: Callable[[Params, Split, Array], Any],
    answer: Callable[[Any, Array, Reference], Array],
    objective: str,
    num_outputs: int,
    query_statistics: str,
    loss: Callable[[Array, Array], Array] | None = None,
    train_read: Callable[[Params, Split, Array], Any] | None = None,
    train_way: int | None = None,
    protocol: Mapping[str, Any] | None = None,
    trains_on: str = "tasks",
    varies: Collection[str] = (),
) -> Method:
    """A learner that takes the support labels as an input instead of descending a loss.

    Having seen no label, it reads that every class is equally likely (or, in regression, that every target is zero).

    Args:
      init, answer, objective, query_statistics, loss, protocol, trains_on, varies: as in `learner`.
      read: `(meta_params, support, key) -> state`, of a support set whose `y` are rows, see `target_rows`: probabilities
        of the classes, or the targets of a regression.
      num_outputs: the way, or the size of a regression target.
      train_read: `read` in training; None: the same.
      train_way: the way of training tasks; None: as in evaluation.
    """

    def in_rows(support, way):
        return support._replace(y=target_rows(support, objective, way))

    def reads(read, way):
        return lambda meta_params, support, key: read(meta_params, in_rows(support, way), key)

    def read_nothing(meta_params, support, key):
        support = in_rows(support, num_outputs)
        nothing = jnp.full_like(support.y, 1 / num_outputs if objective == "classification" else 0)
        if support.mask is not None and objective == "classification":
            its = (support.y > 0).any(0).astype(nothing.dtype)
            nothing = jnp.where(support.mask[:, None], (its / its.sum())[None], 0)
        return read(meta_params, support._replace(y=nothing), key)

    return learner(
        init=init,
        adapt=reads(read, num_outputs),
        answer=answer,
        unadapted=read_nothing,
        objective=objective,
        query_statistics=query_statistics,
        loss=loss,
        train_adapt=reads(train_read or read, train_way or num_outputs),
        protocol=protocol,
        trains_on=trains_on,
        varies=varies,
    )


def encoded(encode: Callable[[Array, Reference], Array], task: Task, query_statistics: str) -> Task:
    """A task with what an encoder makes of its inputs, each passing it once: the support set's `[k, *]`, the queries' `[n, *]`.

    It is what `adapt` and `predict` see of them, though `predict` passes the support set again.

    Args:
      encode: `(x: [n, *feature], reference) -> [n, *]`, see `learner`.
      query_statistics: see `learner`.
    """
    (support, _, mask), query = task.support, task.query.x
    if query_statistics == "support":
        both = encode(jnp.concatenate([support, query]), support.shape[0] if mask is None else mask)
        support, query = both[: support.shape[0]], both[support.shape[0] :]
    elif query_statistics == "query":
        support, query = encode(support, mask), encode(query, task.query.mask)
    else:
        with_one = _and_one(mask)
        query = lax.map(lambda one: encode(jnp.concatenate([support, one[None]]), with_one)[-1], query)
        support = encode(support, mask)
    return Task(task.support._replace(x=support), task.query._replace(x=query))


def flat(features: Array) -> Array:
    """`[n, *feature]` -> `[n, size]`."""
    return features.reshape(features.shape[0], -1)


def only(features: Array, mask: Array | None) -> Array:
    """Features `[n, size]` with zeros for padding, which adds nothing to a product over rows."""
    return features if mask is None else jnp.where(mask[:, None], features, 0)


def target_rows(support: Split, objective: str, num_outputs: int) -> Array:
    """Labels as one-hot rows, targets of a regression as they are, zeros for padding: `[n, num_outputs]`."""
    y, mask = support.y, support.mask
    rows = jax.nn.one_hot(y, num_outputs, dtype=support.x.dtype) if objective == "classification" else y
    return rows if mask is None else jnp.where(mask[:, None], rows, 0)


def class_means(features: Array, targets: Array) -> Array:
    """Means of `features: [n, size]` within classes, weighted by `targets: [n, way]`: `[way, size]`, zeros of no weight."""
    weights = targets.sum(0)[:, None]
    return targets.T @ features / jnp.where(weights > 0, weights, 1)


def refuse_regression(method: str, objective: str) -> None:
    """Raises `ConfigError` for a data set that has no classes, on behalf of a method that needs them."""
    if objective != "classification":
        raise ConfigError("method", method, f"a method for {objective}, such as maml: this one needs classes")


def of_fewer_classes(method: Method, way: int) -> Method:
    """A method whose tasks differ in way, as one that answers tasks of `way` classes, fewer than its outputs."""

    def reads(adapt):
        def of_masked(meta_params, support, key):
            return adapt(meta_params, support._replace(mask=jnp.ones(support.y.shape[:1], bool)), key)

        return of_masked

    return method._replace(
        adapt=reads(method.adapt),
        unadapted=reads(method.unadapted),
        predict=lambda adapted, x: method.predict(adapted, x)[:, :way],
    )


def _ready(objective: str, query_statistics: str, state: Any, support: Split) -> Adapted:
    reference = support.x[:0] if query_statistics == "query" else support.x
    labels = None if support.mask is None or objective != "classification" else support.y
    return Adapted(state, reference, support.mask, labels)


def _predict(
    answer: Callable[[Any, Array, Reference], Array],
    query_statistics: str,
    adapted: Adapted,
    x: Array,
    mask: Array | None = None,
) -> Array:
    """Outputs for queries `x`, of which `mask` tells the examples where their own statistics serve."""
    state, reference, support_mask, labels = adapted
    if query_statistics == "query":
        outputs = answer(state, x, mask)
    elif query_statistics == "support":
        count = reference.shape[0]
        both = jnp.concatenate([reference, x])
        outputs = answer(state, both, count if support_mask is None else support_mask)[count:]
    else:
        # One at a time, since together they would hold the support set once for every query.
        with_one = _and_one(support_mask)
        outputs = lax.map(lambda one: answer(state, jnp.concatenate([reference, one[None]]), with_one)[-1], x)
    if labels is None:
        return outputs
    targets = target_rows(Split(reference, labels, support_mask), "classification", outputs.shape[1])
    return present(targets, outputs, support_mask)


def _and_one(mask: Array | None) -> Array | None:
    """The mask of a support set and one query more."""
    return None if mask is None else jnp.append(mask, True)

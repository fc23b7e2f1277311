"""What meta-learners have in common that read a support set, answer queries, and are trained by their answers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metarun.errors import ConfigError, one_of
from metarun.few_shot.losses import OBJECTIVES
from metarun.types import Array, Method, Metrics, Params, Split, Task

STATISTICS = ("query", "support", "each")


class Adapted(NamedTuple):
    """A learner that has seen a support set.

    Attributes:
      state: whatever the method adapts: fast weights, prototypes, generated weights, a recurrent state, ...
      reference: support inputs `[n, *feature]` by whose statistics queries are normalised, or `[0, *feature]`.
    """

    state: Any
    reference: Array


def learner(
    *,
    init: Callable[[Array, Task], Params],
    adapt: Callable[[Params, Split, Array], Any],
    answer: Callable[[Any, Array, int | None], Array],
    unadapted: Callable[[Params, Split, Array], Any],
    objective: str,
    query_statistics: str,
    loss: Callable[[Array, Array], Array] | None = None,
    train_adapt: Callable[[Params, Split, Array], Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    trains_on: str = "tasks",
) -> Method:
    """A method that is trained by the mean loss of its answers to the queries.

    Args:
      init: as in `Method`.
      adapt: `(meta_params, support, key) -> state`.
      answer: `(state, x: [n, *feature], reference) -> outputs: [n, num_outputs]`; networks that normalise over a set
        use the statistics of the first `reference` rows of `x` (all rows if None).
      unadapted: as `adapt`, the state in which it starts, having seen no label.
      objective: "classification" or "regression".
      query_statistics: which set's statistics normalise the queries: "query", the queries themselves (transductive:
        the answer to one depends on the others); "support"; or "each", the support set and that one query together
        (Nichol et al. 2018's protocol without transduction).
      loss: `(outputs: [n, num_outputs], y) -> [n]`, whose mean over the queries is trained; None: the objective's.
      train_adapt: `adapt` in training; None: the same.
      protocol: conventions of evaluation beside `query_statistics`.
      trains_on: as in `Method`.

    Raises:
      ConfigError: for another value of `query_statistics`.
    """
    judged = query_loss(answer=answer, objective=objective, query_statistics=query_statistics, loss=loss)

    def adapted(adapt):
        return lambda meta_params, support, key: _ready(adapt(meta_params, support, key), support, query_statistics)

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
    )


def query_loss(
    *,
    answer: Callable[[Any, Array, int | None], Array],
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
        outputs = _predict(answer, query_statistics, _ready(state, task.support, query_statistics), task.query.x)
        mean_loss = (loss or score.loss)(outputs, task.query.y).mean()
        return mean_loss, {"loss": mean_loss, f"query/{score.metric}": score.measure(outputs, task.query.y).mean()}

    return judged


def stepwise(
    *,
    init: Callable[[Array, Task], Params],
    adapt: Callable[[Params, Split, Array, int], Any],
    num_steps: tuple[int, int],
    answer: Callable[[Any, Array, int | None], Array],
    objective: str,
    query_statistics: str,
    protocol: Mapping[str, Any] | None = None,
    trains_on: str = "tasks",
) -> Method:
    """A learner that adapts in steps, and has seen no label before the first.

    Args:
      init, answer, objective, query_statistics, protocol, trains_on: as in `learner`.
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
    )


def conditioned(
    *,
    init: Callable[[Array, Task], Params],
    read: Callable[[Params, Array, Array, Array], Any],
    answer: Callable[[Any, Array, int | None], Array],
    objective: str,
    num_outputs: int,
    query_statistics: str,
    loss: Callable[[Array, Array], Array] | None = None,
    train_read: Callable[[Params, Array, Array, Array], Any] | None = None,
    train_way: int | None = None,
    protocol: Mapping[str, Any] | None = None,
    trains_on: str = "tasks",
) -> Method:
    """A learner that takes the support labels as an input instead of descending a loss.

    Having seen no label, it reads that every class is equally likely (or, in regression, that every target is zero).

    Args:
      init, answer, objective, query_statistics, loss, protocol, trains_on: as in `learner`.
      read: `(meta_params, x: [n, *feature], targets: [n, num_outputs], key) -> state`; targets are probabilities of
        the classes, one-hot where labels are known, or the targets of a regression.
      num_outputs: the way, or the size of a regression target.
      train_read: `read` in training; None: the same.
      train_way: the way of training tasks; None: as in evaluation.
    """

    def reads(read, way):
        return lambda meta_params, support, key: read(meta_params, support.x, target_rows(support, objective, way), key)

    def read_nothing(meta_params, support, key):
        nothing = jnp.full_like(
            target_rows(support, objective, num_outputs), 1 / num_outputs if objective == "classification" else 0
        )
        return read(meta_params, support.x, nothing, key)

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
    )


def encoded(encode: Callable[[Array, int | None], Array], task: Task, query_statistics: str) -> tuple[Array, Array]:
    """What an encoder makes of both sets of a task, each input passing it once: the support set's `[k, *]`, the queries' `[n, *]`.

    It is what `adapt` and `predict` see of them, though `predict` passes the support set again.

    Args:
      encode: `(x: [n, *feature], reference) -> [n, *]`, see `learner`.
      query_statistics: see `learner`.
    """
    support, query = task.support.x, task.query.x
    if query_statistics == "support":
        both = encode(jnp.concatenate([support, query]), support.shape[0])
        return both[: support.shape[0]], both[support.shape[0] :]
    if query_statistics == "query":
        return encode(support, None), encode(query, None)
    each = lax.map(lambda one: encode(jnp.concatenate([support, one[None]]), None)[-1], query)
    return encode(support, None), each


def flat(features: Array) -> Array:
    """`[n, *feature]` -> `[n, size]`."""
    return features.reshape(features.shape[0], -1)


def target_rows(support: Split, objective: str, num_outputs: int) -> Array:
    """Labels as one-hot rows, targets of a regression as they are: `[n, num_outputs]`."""
    if objective == "classification":
        return jax.nn.one_hot(support.y, num_outputs, dtype=support.x.dtype)
    return support.y


def class_means(features: Array, targets: Array) -> Array:
    """Means of `features: [n, size]` within classes, weighted by `targets: [n, way]`: `[way, size]`."""
    return targets.T @ features / targets.sum(0)[:, None]


def refuse_regression(method: str, objective: str) -> None:
    """Raises `ConfigError` for a data set that has no classes, on behalf of a method that needs them."""
    if objective != "classification":
        raise ConfigError("method", method, f"a method for {objective}, such as maml: this one needs classes")


def _ready(state: Any, support: Split, query_statistics: str) -> Adapted:
    return Adapted(state, support.x[:0] if query_statistics == "query" else support.x)


def _predict(
    answer: Callable[[Any, Array, int | None], Array], query_statistics: str, adapted: Adapted, x: Array
) -> Array:
    state, reference = adapted
    if query_statistics == "query":
        return answer(state, x, None)
    if query_statistics == "support":
        return answer(state, jnp.concatenate([reference, x]), reference.shape[0])[reference.shape[0] :]
    # One at a time, since together they would hold the support set once for every query.
    return lax.map(lambda one: answer(state, jnp.concatenate([reference, one[None]]), None)[-1], x)

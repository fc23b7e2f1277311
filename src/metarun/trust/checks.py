"""The checks of a test: how its tasks are changed, and what the changed answers say.

Each check can fail: a support set whose labels say nothing must leave a learner at chance, and neither the order of the
queries nor the numbers that classes happen to carry may move an answer. An implementation that leaks fails here.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metarun.trust.equivalence import standard_error
from metarun.types import Array, Split, Task

# Four standard errors: an honest run fails by chance once in 16,000 checks.
SIGMAS = 4
# Answers that may differ because float32 sums depend on their order.
_ROUNDING = 1e-3


def shuffle_support_labels(task: Task, key: Array) -> Task:
    """The task with its support labels dealt at random among the support examples."""
    x, y, mask = task.support
    if mask is None:
        return task._replace(support=Split(x, jax.random.permutation(key, y)))
    dealt = jnp.argsort(jnp.where(mask, jax.random.uniform(key, y.shape), 2))
    return task._replace(support=Split(x, y.at[jnp.argsort(~mask)].set(y[dealt]), mask))


def relabel(task: Task, key: Array, way: int) -> tuple[Task, Array]:
    """The task with its classes numbered anew, and the permutation: class `c` becomes `permutation[c]`."""
    permutation = jax.random.permutation(key, way)
    return Task(*(part._replace(y=permutation[part.y]) for part in task)), permutation


def mask_of(part: Split) -> np.ndarray:
    """Which rows of each of some sets are examples, `[n, rows]` bool."""
    return np.ones(np.shape(part.y)[:2], bool) if part.mask is None else np.asarray(part.mask)


def counts_of(part: Split, way: int) -> np.ndarray:
    """Examples of each class in each of some sets, `[n, way]`."""
    is_of = (np.asarray(part.y)[:, :, None] == np.arange(way)) & mask_of(part)[:, :, None]
    return is_of.sum(1)


def most_frequent(query: Split, way: int) -> np.ndarray | None:
    """The share of the queries that are of the most frequent class in each of some tasks, `[n]`; None where all are equally often."""
    counts = counts_of(query, way)
    there = np.where(counts > 0, counts, counts.max(1, keepdims=True))
    if (there == there.max(1, keepdims=True)).all():
        return None
    return counts.max(1) / np.maximum(mask_of(query).sum(1), 1)


def ways_of(support: Split, way: int) -> np.ndarray:
    """The classes of each of some tasks, `[n]`: of padded sets those that they have, otherwise `way`."""
    return np.full(len(support.y), way) if support.mask is None else (counts_of(support, way) > 0).sum(1)


def replace_others(x: Array, kept: int) -> Array:
    """The queries `x: [n, *feature]` with the first `kept` in their places, and copies of the first in all others'."""
    return jnp.where(jnp.arange(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1)) < kept, x, x[:1])


def not_checked(reason: str) -> Mapping[str, Any]:
    """The entry of a check that could not be made, with the reason; it has neither passed nor failed."""
    return {"passed": None, "value": None, "reason": reason}


_ONE_TASK = not_checked("over a single task there is no sampling error to judge by: give eval_tasks=2 or more")


def is_chance(
    per_task: np.ndarray | Array, chance: np.ndarray | Array | float, best: np.ndarray | Array | float | None = None
) -> Mapping[str, Any]:
    """Passes if the mean of a metric over tasks `[n]` is at chance within sampling error; of one task it is not checked.

    Args:
      per_task: the metric of each task, `[n]`.
      chance: what chance reaches, or what it has reached in each of the same tasks, `[n]`.
      best: what it can reach at best, as where classes are not equally often, and all answers are the most frequent; None: no
        more.
    """
    if len(per_task) < 2:
        return _ONE_TASK
    value, expected, highest = (float(np.mean(each)) for each in (per_task, chance, chance if best is None else best))
    below, above = (
        SIGMAS * standard_error(per_task - each) + 1e-6 for each in (chance, chance if best is None else best)
    )
    found = {"passed": bool(expected - below <= value <= highest + above), "value": value, "chance": expected}
    return found if best is None else {**found, "best": highest}


def is_unmoved(per_task: np.ndarray, changed_per_task: np.ndarray, changed: float) -> Mapping[str, Any]:
    """Passes if the metric's mean paired difference over tasks is zero within sampling error; of one it is not checked.

    Args:
      per_task: metric of each task, `[n]`.
      changed_per_task: metric of the same tasks after a change that should not matter.
      changed: fraction of the answers that the change altered, for information.
    """
    if len(per_task) < 2:
        return _ONE_TASK
    passed, value = _no_drift(per_task, changed_per_task), _mean_of(changed_per_task, per_task)
    return {"passed": passed, "value": value, "changed": changed}


def is_same(outputs: np.ndarray, others: np.ndarray, classification: bool) -> Mapping[str, Any]:
    """Passes if two sets of outputs `[n, num_query, num_outputs]` of one program give the same answers.

    `value` is the fraction of answers that differ: other classes, or numbers more than a thousandth apart.
    """
    value = fraction_changed(outputs, others, classification)
    return {"passed": value <= _ROUNDING, "value": value}


def query_count(
    per_task: np.ndarray,
    alone_per_task: np.ndarray,
    changed: float,
    changed_by_others: float,
    *,
    transductive: bool,
    precision: str,
) -> Mapping[str, Any]:
    """How much the answers depend on the other queries, with which they are asked, and on how many there are.

    Passes if they do not, or if the protocol says that they may; reported either way. Two things must hold:

    Other queries in the place of the others change no answer. Both are computed by one program and each answer in its
    place, so that its roundings are the same: this holds to the bit in any precision, and no tolerance has to hide a leak.

    An answer is the same alone. That is another program, which rounds otherwise. In float32 answers all but agree. In less,
    those near a tie do not, right ones turning wrong as often as wrong ones right: the metric must not move.

    Args:
      per_task: metric of each task, its queries answered together, `[n]`.
      alone_per_task: metric of the same queries, each answered on its own, `[n]`.
      changed: fraction of the answers that differ between the two.
      changed_by_others: fraction of the answers that change with the other queries.
      transductive: whether the protocol lets the queries' own statistics serve.
      precision: of the run, one of `backend.PRECISIONS`.

    Returns:
      `together` and `alone` are the metric over the same queries, `value` the mean difference, together minus alone.
    """
    same_alone = changed <= _ROUNDING if precision == "float32" else _no_drift(per_task, alone_per_task)
    return {
        "passed": bool(transductive or changed_by_others <= _ROUNDING and same_alone),
        "value": _mean_of(per_task, alone_per_task),
        "together": float(np.mean(per_task)),
        "alone": float(np.mean(alone_per_task)),
        "changed": changed,
        "changed_by_others": changed_by_others,
        "declared_transductive": transductive,
    }


def fraction_changed(outputs: np.ndarray, others: np.ndarray, classification: bool) -> float:
    """Fraction of the answers that differ between two arrays `[..., num_outputs]`."""
    if classification:
        return float(np.mean(outputs.argmax(-1) != others.argmax(-1)))
    return float(np.mean(np.abs(outputs - others) > 1e-3 * (1 + np.abs(outputs))))


def _mean_of(values: np.ndarray, others: np.ndarray) -> float:
    return float(np.mean(np.asarray(values) - np.asarray(others)))


def _no_drift(per_task: np.ndarray, others: np.ndarray) -> bool:
    """Whether two metrics of the same tasks `[n]` differ in the mean by sampling error at most."""
    if len(per_task) < 2:
        return True  # nothing to judge by
    difference = np.asarray(others) - np.asarray(per_task)
    return bool(abs(float(difference.mean())) <= SIGMAS * standard_error(difference) + 1e-6)

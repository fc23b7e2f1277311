"""What must hold of an honest evaluation, as changes made to its tasks and verdicts on what they did to the answers.

Each check can fail: a support set whose labels say nothing must leave a learner at chance, and neither the order of the
queries nor the numbers that classes happen to carry may move an answer. An implementation that leaks fails here.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from metarun.types import Array, Split, Task

# Four standard errors: an honest run fails by chance once in 16,000 checks.
SIGMAS = 4
# Answers that may differ because float32 sums depend on their order.
_ROUNDING = 1e-3


def shuffle_support_labels(task: Task, key: Array) -> Task:
    """The task with its support labels dealt at random among the support inputs."""
    return task._replace(support=Split(task.support.x, jax.random.permutation(key, task.support.y)))


def relabel(task: Task, key: Array, way: int) -> tuple[Task, Array]:
    """The task with its classes numbered anew, and the permutation: class `c` becomes `permutation[c]`."""
    permutation = jax.random.permutation(key, way)
    support, query = (Split(part.x, permutation[part.y]) for part in task)
    return Task(support, query), permutation


def reorder_query(task: Task, key: Array) -> tuple[Task, Array]:
    """The task with its queries in another order, and the order: query `i` is the former `order[i]`."""
    order = jax.random.permutation(key, task.query.x.shape[0])
    return task._replace(query=jax.tree.map(lambda x: x[order], task.query)), order


def is_chance(per_task: np.ndarray, chance: np.ndarray | float) -> Mapping[str, Any]:
    """Passes if the mean of a metric over tasks `[n]` is at chance within sampling error.

    Args:
      per_task: the metric of each task, `[n]`.
      chance: what chance reaches, or what it has reached in each of the same tasks, `[n]`.
    """
    error = standard_error(per_task - chance)
    value, expected = float(np.mean(per_task)), float(np.mean(chance))
    return {"passed": bool(abs(value - expected) <= SIGMAS * error + 1e-6), "value": value, "chance": expected}


def is_unmoved(per_task: np.ndarray, changed_per_task: np.ndarray, changed: float) -> Mapping[str, Any]:
    """Passes if the metric's mean paired difference over tasks is zero within sampling error.

    Args:
      per_task: metric of each task, `[n]`.
      changed_per_task: metric of the same tasks after a change that should not matter.
      changed: fraction of the answers that the change altered, for information.
    """
    difference = np.asarray(changed_per_task) - np.asarray(per_task)
    value = float(difference.mean())
    return {
        "passed": bool(abs(value) <= SIGMAS * standard_error(difference) + 1e-6),
        "value": value,
        "changed": changed,
    }


def is_same(outputs: np.ndarray, others: np.ndarray, classification: bool) -> Mapping[str, Any]:
    """Passes if two sets of outputs `[n, num_query, num_outputs]` give the same answers but for rounding.

    `value` is the fraction of answers that differ: other classes, or numbers more than a thousandth apart.
    """
    value = fraction_changed(outputs, others, classification)
    return {"passed": value <= _ROUNDING, "value": value}


def query_count(
    per_task: np.ndarray, alone_per_task: np.ndarray, changed: float, transductive: bool
) -> Mapping[str, Any]:
    """How much the answers depend on the number of queries that are answered together.

    Passes if they do not, or if the protocol says that they may; reported either way.

    Args:
      per_task: metric of each task, its queries answered together, `[n]`.
      alone_per_task: metric with each query answered on its own, `[n]`.
      changed: fraction of the answers that differ between the two.
      transductive: whether the protocol lets the queries' own statistics serve.

    Returns:
      `value` is the mean difference, together minus alone.
    """
    value = float(np.mean(np.asarray(per_task) - np.asarray(alone_per_task)))
    return {
        "passed": bool(transductive or changed <= _ROUNDING),
        "value": value,
        "alone": float(np.mean(alone_per_task)),
        "changed": changed,
        "declared_transductive": transductive,
    }


def fraction_changed(outputs: np.ndarray, others: np.ndarray, classification: bool) -> float:
    """Fraction of the answers that differ between two arrays `[..., num_outputs]`."""
    if classification:
        return float(np.mean(outputs.argmax(-1) != others.argmax(-1)))
    return float(np.mean(np.abs(outputs - others) > 1e-3 * (1 + np.abs(outputs))))


def standard_error(values: np.ndarray) -> float:
    """s / sqrt(n) of `values: [n]`, with s the sample standard deviation; 0 for a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0

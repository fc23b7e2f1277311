"""The checks of a few-shot test: a block of tasks is changed in ways that must, or must not, change the answers.

What each finding means is in `trust.checks`; leaks that lie in the tasks themselves are in `trust.leaks`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metarun.system.backend import jit_quickly
from metarun.trust import checks as check
from metarun.trust import leaks
from metarun.types import Array, DataSet, Method, Params, Task

ALONE = 15  # queries of a checked task that are asked one at a time, for each of which the support set is read again
CHECKED = 200  # tasks on which the checks run: enough to see a leak of five points


class LearnerChecks:
    """The checks of one method on one data set.

    Args:
      method: the meta-learner.
      dataset: what the tasks are of.
      over_tasks: compiles a function of one task over a block of them, see `MetaTest`.
      answer, answer_unadapted: `(params, tasks, key) -> outputs` on the queries, after adaptation and before.
      measure: `(outputs, y, mask=None) -> [num_tasks]`, of the queries of each task.
      precision: of products, which bounds what is taken for rounding.
    """

    def __init__(
        self,
        method: Method,
        dataset: DataSet,
        over_tasks: Callable[..., Any],
        answer: Callable[..., Any],
        answer_unadapted: Callable[..., Any],
        measure: Callable[..., Any],
        precision: str,
    ):
        self._method, self._dataset, self._precision = method, dataset, precision
        self._answer, self._answer_unadapted, self._measure = answer, answer_unadapted, measure
        self._classification = dataset.objective == "classification"
        self._way = dataset.num_outputs if self._classification else None
        self._resized = "fitted" in dataset.protocol
        self._answer_in_companies = over_tasks(self._in_companies)
        # Compiled whole: dispatched one by one, their operations take longer to compile than the checks to compute.
        self._orders = jit_quickly(jax.vmap(lambda key, y: jax.random.permutation(key, y.shape[0])))
        self._shuffle_support_labels = jit_quickly(jax.vmap(check.shuffle_support_labels))
        self._relabel = jit_quickly(jax.vmap(partial(check.relabel, way=dataset.num_outputs)))

    def traces(
        self, params: Params, tasks: Task, key: Array, check_keys: Array, outputs: Array, split: str
    ) -> dict[str, np.ndarray]:
        """What the checks need to know of a block of tasks, NumPy arrays with a leading axis of tasks."""
        known = None if self._resized or self._dataset.contents is None else self._dataset.contents.get(split)
        found = self._under_changes(params, tasks, key, check_keys, outputs)
        return found | leaks.traces(tasks, self._way, known)

    def verdicts(self, blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Mapping[str, Any]]:
        """The findings of all checks from the traces of blocks."""
        found = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        own = self._of_queries(found) | self._of_labels(found)
        return own | leaks.verdicts(found, self._way, self._dataset.contents, self._resized)

    def _in_companies(self, params: Params, task_and_order: tuple[Task, Array], key: Array) -> dict[str, Array]:
        """The answers to the same queries, asked in four ways.

        As they come; in another order; half of them with other queries in the place of the rest; and the first few one at a
        time.
        """
        (task, order), x = task_and_order, task_and_order[0].query.x
        adapted, predict = self._method.adapt(params, task.support, key), self._method.predict
        sets = jnp.stack([x, x[order], check.replace_others(x, _kept(len(x)))])
        # By one program: what differs between the three is not its rounding.
        together, reordered, replaced = lax.map(lambda x: predict(adapted, x), sets)
        alone = jax.vmap(lambda x: predict(adapted, x[None])[0])(x[:ALONE])
        return {
            "together": together,
            "reordered": jnp.zeros_like(reordered).at[order].set(reordered),
            "replaced": replaced,
            "alone": alone,
        }

    def _under_changes(
        self, params: Params, tasks: Task, key: Array, check_keys: Array, outputs: Array
    ) -> dict[str, np.ndarray]:
        """Outputs and measures of a block of tasks under the changes of `checks`."""
        few = jax.tree.map(lambda part: part[:, :ALONE], tasks.query[1:])
        found = self._answer_in_companies(params, (tasks, self._orders(check_keys[0], tasks.query.y)), key)
        found |= {
            "alone_per_task": self._measure(found["alone"], *few),
            "together_per_task": self._measure(found["together"][:, :ALONE], *few),
        }
        if self._classification:
            query, way = tasks.query[1:], self._dataset.num_outputs
            chance, most = 1 / check.ways_of(tasks.support, way), check.most_frequent(tasks.query, way)
            shuffled = self._shuffle_support_labels(tasks, check_keys[1])
            relabelled, permutation = self._relabel(tasks, check_keys[2])
            new_outputs = self._answer(params, relabelled, key)
            found |= {
                "outputs": outputs,
                "chance_per_task": chance,
                "most_frequent": chance if most is None else most,
                "per_task": self._measure(outputs, *query),
                "unadapted_per_task": self._measure(self._answer_unadapted(params, tasks, key), *query),
                "shuffled_per_task": self._measure(self._answer(params, shuffled, key), *query),
                "relabelled_per_task": self._measure(new_outputs, *relabelled.query[1:]),
                "relabelled": jnp.take_along_axis(new_outputs, permutation[:, None, :], axis=2),
            }
        return jax.tree.map(np.asarray, found)

    def _changed(self, one: np.ndarray, other: np.ndarray) -> Any:
        return check.fraction_changed(one, other, self._classification)

    def _of_queries(self, found: Mapping[str, np.ndarray]) -> dict[str, Mapping[str, Any]]:
        """Whether answers depend on the order of the queries, and on the others."""
        together, kept = found["together"], _kept(found["together"].shape[1])
        return {
            "query_order": check.is_same(together, found["reordered"], self._classification),
            "query_count": check.query_count(
                found["together_per_task"],
                found["alone_per_task"],
                self._changed(together[:, :ALONE], found["alone"]),
                self._changed(together[:, :kept], found["replaced"][:, :kept]),
                transductive=self._method.protocol.get("query_statistics") == "query",
                precision=self._precision,
            ),
        }

    def _of_labels(self, found: Mapping[str, np.ndarray]) -> dict[str, Mapping[str, Any]]:
        """Whether accuracy is at chance without labels, and answers follow them."""
        if not self._classification:
            return dict.fromkeys(
                ("chance_before_adaptation", "chance_with_shuffled_labels", "relabelling"),
                check.not_checked(leaks.NO_CLASSES),
            )
        chance, most = found["chance_per_task"], found["most_frequent"]
        return {
            "chance_before_adaptation": check.is_chance(found["unadapted_per_task"], chance),
            "chance_with_shuffled_labels": check.is_chance(
                found["shuffled_per_task"], chance, None if np.array_equal(chance, most) else most
            ),
            "relabelling": check.is_unmoved(
                found["per_task"],
                found["relabelled_per_task"],
                self._changed(found["outputs"], found["relabelled"]),
            ),
        }


def _kept(num_queries: int) -> int:
    """Queries of a checked task that stay while the others are replaced: at most half, so that there are others."""
    return min(ALONE, num_queries - num_queries // 2)

"""Validation and test of few-shot learning: a learner answers the queries of tasks that are the same at every call."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metarun.compiled.task_map import Layout, map_tasks, placed
from metarun.few_shot.by_size import by_size
from metarun.few_shot.learner_checks import CHECKED, LearnerChecks
from metarun.few_shot.losses import OBJECTIVES, average
from metarun.training.ensemble import answered
from metarun.trust.checks import counts_of, mask_of, standard_error
from metarun.types import Array, DataSet, Evaluation, Method, Params, Task

BLOCK = 50  # tasks of one dispatch: what bounds its memory, and how long a stop signal waits


class _Measured(NamedTuple):
    """What was found of some tasks: the quantity of each, what the checks know of them, and the arrays of `by_size`, or None."""

    values: np.ndarray
    traces: list[dict[str, np.ndarray]]
    counts: np.ndarray | None
    of_classes: np.ndarray | None


class MetaTest:
    """Tests of a method's parameters on a data set's validation and test tasks.

    Args:
      method: the meta-learner.
      dataset: what the tasks are of.
      samplers: split -> `keys: [n] -> tasks`.
      domains: the same of meta-test's tasks by domain, see `DataSet.domains`.
      layout: where tasks are computed.
      eval_layout: `() -> layout` of tasks that are answered, which may be known only once the run is prepared.
      eval_seed: what the tasks are drawn by.
      precision: of products, which bounds what a check takes for rounding.
    """

    def __init__(
        self,
        method: Method,
        dataset: DataSet,
        samplers: Mapping[str, Callable[[Array], Task]],
        domains: Mapping[str, Callable[[Array], Task]],
        layout: Layout,
        eval_layout: Callable[[], Layout],
        *,
        eval_seed: int,
        precision: str,
    ):
        self._samplers, self._domains = samplers, domains
        self._layout, self._eval_layout, self._eval_seed = layout, eval_layout, eval_seed
        self.score, self._varies = OBJECTIVES[dataset.objective], dataset.varies
        self._measure = jax.jit(
            jax.vmap(lambda outputs, y, mask=None: average(self.score.measure(outputs, y), mask)),
        )
        self._of_classes = jax.jit(jax.vmap(self._of_each_class)) if dataset.objective == "classification" else None
        adapt, predict = method.adapt, method.predict
        self._answer = self._over_tasks(
            lambda params, task, key: predict(adapt(params, task.support, key), task.query.x)
        )
        self._answer_unadapted = self._over_tasks(
            lambda params, task, key: predict(method.unadapted(params, task.support, key), task.query.x)
        )
        self._checks = LearnerChecks(
            method, dataset, self._over_tasks, self._answer, self._answer_unadapted, self._measure, precision
        )

    def evaluate(self, params: Params, split: str, num_tasks: int, checks: bool = False) -> Evaluation:
        """As `Experiment.evaluate`.

        Where there are domains, meta-test has as many tasks of each, and a group of each. Where tasks differ in size, it has
        those of `by_size`.
        """
        params, parts = placed(params, self._layout.replicated), self._parts(split)
        share, checked = -(-num_tasks // len(parts)), checks * CHECKED // len(parts)
        measured = {name: self._measured(params, split, *part, share, checked) for name, part in parts.items()}
        value, ci95 = _with_ci95([its.values for its in measured.values()])
        whole = _together([*measured.values()])
        verdicts = self._checks.verdicts(whole.traces) if checks else {}
        groups: dict[str, Mapping[str, np.ndarray]] = {}
        if self._domains and split == "test":
            groups["domains"] = {name: its.values for name, its in measured.items()}
        if whole.counts is not None:
            groups |= by_size(whole.values, whole.counts, whole.of_classes, self._varies)
        beside = {field: {name: _in_fields(of) for name, of in its.items()} for field, its in groups.items()}
        return Evaluation(self.score.metric, value, ci95, len(whole.values), whole.values, verdicts, beside, groups)

    def _parts(self, split: str) -> dict[str, tuple[Callable[[Array], Task], Array]]:
        """What a split is tested on: by the name of a domain, or "", what samples its tasks, and the key that draws them."""
        root = self._root(split)
        if split != "test" or not self._domains:
            return {"": (self._samplers[split], root)}
        return {name: (its, jax.random.fold_in(root, i)) for i, (name, its) in enumerate(self._domains.items())}

    def _measured(
        self, params: Params, split: str, sampler: Callable[[Array], Task], root: Array, num_tasks: int, checked: int
    ) -> _Measured:
        """What is found of a sampler's first tasks; the checks know of `checked` of them or all."""
        found: list[_Measured] = []
        for start in range(0, num_tasks, BLOCK):
            tasks, key, check_keys = _sampled(sampler, root, start // BLOCK)
            outputs, kept = self._answer(params, tasks, key), min(BLOCK, num_tasks - start)
            known = start < checked
            traces = [self._checks.traces(params, tasks, key, check_keys, outputs, split)] if known else []
            of_tasks = _Measured(
                self._measure(outputs, *tasks.query[1:]), traces, *self._by_class(tasks, outputs, split)
            )
            found.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[:kept], of_tasks))
        return _together(found)

    def _by_class(self, tasks: Task, outputs: Array, split: str) -> tuple[Any, Any]:
        """`counts` and `of_classes` of meta-test's tasks as `by_size` takes them; None for tasks of one size."""
        support, query = tasks
        if not self._varies or split != "test":
            return None, None
        if self._of_classes is None:
            return mask_of(support).sum(1, keepdims=True), None
        return counts_of(support, outputs.shape[-1]), self._of_classes(outputs, *query[1:])

    def _of_each_class(self, outputs: Array, y: Array, mask: Array | None = None) -> Array:
        """The mean quantity of the queries of each class, `[way]`; NaN where it has none."""
        its = y[:, None] == jnp.arange(outputs.shape[-1])[None]
        weight = (its if mask is None else its & mask[:, None]).astype(outputs.dtype)
        return self.score.measure(outputs, y) @ weight / weight.sum(0)

    def examples(self, params: Params, num_tasks: int) -> Any:
        """As `Experiment.examples`: tasks, and the outputs on their queries before and after adaptation."""
        params = placed(params, self._layout.replicated)
        tasks, key, _ = _sampled(self._samplers["test"], self._root("test"), 0)
        found = tasks, self._answer_unadapted(params, tasks, key), self._answer(params, tasks, key)
        return jax.tree.map(lambda x: np.asarray(x)[:num_tasks], found)

    def _root(self, split: str) -> Array:
        """The key that the tasks of a split are drawn by."""
        return jax.random.fold_in(jax.random.key(self._eval_seed), split == "test")

    def _over_tasks(self, adapt_and_predict: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled `(params, tasks, key) -> answers` over tasks, which share the program for every split and check."""

        def one(params_and_key, task_and_index):
            (params, key), (task, index) = params_and_key, task_and_index
            return adapt_and_predict(params, task, jax.random.fold_in(key, index))

        @partial(jax.jit, static_argnums=0)
        def over_tasks(layout, params, tasks, key):
            num_tasks = jax.tree.leaves(tasks)[0].shape[0]
            answers = map_tasks(one, layout, (params, key), (tasks, jnp.arange(num_tasks)))
            return lax.with_sharding_constraint(answers, layout.for_host(num_tasks))

        return lambda params, tasks, key: answered(
            params, lambda each: over_tasks(self._eval_layout(), each, tasks, key)
        )


def _sampled(sampler: Callable[[Array], Task], root: Array, block: int) -> tuple[Task, Array, Array]:
    """The `block`-th tasks that a key draws, the key of their adaptation, and those of three checks, `[3, BLOCK]`."""
    sample_key, adapt_key, check_key = jax.random.split(jax.random.fold_in(root, block), 3)
    return sampler(jax.random.split(sample_key, BLOCK)), adapt_key, jax.random.split(check_key, (3, BLOCK))


def _together(parts: Sequence[_Measured]) -> _Measured:
    def joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        known = [array for array in arrays if array is not None]
        return np.concatenate(known) if known else None

    return _Measured(
        np.concatenate([part.values for part in parts]),
        [trace for part in parts for trace in part.traces],
        joined([part.counts for part in parts]),
        joined([part.of_classes for part in parts]),
    )


def _in_fields(values: np.ndarray) -> dict[str, Any]:
    """The mean of some tasks as a result states it; of one task there is no interval."""
    value, ci95 = _with_ci95([values])
    return {"value": value, "ci95": ci95 if len(values) > 1 else None, "num_tasks": len(values)}


def _with_ci95(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean of the means of groups of tasks, and half the width of its 95% interval."""
    means, errors = [values.mean() for values in groups], [standard_error(values) for values in groups]
    return float(np.mean(means)), 1.96 * math.hypot(*errors) / len(groups)

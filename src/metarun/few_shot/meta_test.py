"""Validation and test of few-shot learning: a learner answers the queries of tasks that are the same at every call."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metarun.compiled.task_map import Layout, map_tasks, placed
from metarun.few_shot.learner_checks import CHECKED, LearnerChecks
from metarun.few_shot.losses import OBJECTIVES, average
from metarun.training.ensemble import answered
from metarun.trust.checks import mask_of, standard_error, ways_of
from metarun.types import Array, DataSet, Evaluation, Method, Params, Split, Task

SIZES = ("way", "shot")  # in which tasks may differ
BLOCK = 50  # tasks of one dispatch: what bounds its memory, and how long a stop signal waits


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

        Where there are domains, meta-test has as many tasks of each, and `beside` says what is of each. Where tasks differ in
        size, it says what is of each way and of each shot, the mean of a task's classes, rounded.
        """
        params, parts = placed(params, self._layout.replicated), self._parts(split)
        share, checked = -(-num_tasks // len(parts)), checks * CHECKED // len(parts)
        measured = {name: self._measured(params, split, *part, share, checked) for name, part in parts.items()}
        of_each = {name: values for name, (values, _, _) in measured.items()}
        verdicts = self._checks.verdicts([each for _, its, _ in measured.values() for each in its]) if checks else {}
        value, ci95 = _with_ci95([*of_each.values()])
        per_task = np.concatenate([*of_each.values()])
        beside = {}
        if self._domains and split == "test":
            beside["domains"] = {name: _in_fields(values) for name, values in of_each.items()}
        sizes = np.concatenate([sizes for *_, sizes in measured.values()])
        for what, its in zip(SIZES, sizes.T, strict=False) if split == "test" else ():
            if what in self._varies:
                beside[f"by_{what}"] = {str(size): _in_fields(per_task[its == size]) for size in np.unique(its)}
        return Evaluation(self.score.metric, value, ci95, len(per_task), per_task, verdicts, beside)

    def _parts(self, split: str) -> dict[str, tuple[Callable[[Array], Task], Array]]:
        """What a split is tested on: by the name of a domain, or "", what samples its tasks, and the key that draws them."""
        root = self._root(split)
        if split != "test" or not self._domains:
            return {"": (self._samplers[split], root)}
        return {name: (its, jax.random.fold_in(root, i)) for i, (name, its) in enumerate(self._domains.items())}

    def _measured(
        self, params: Params, split: str, sampler: Callable[[Array], Task], root: Array, num_tasks: int, checked: int
    ) -> tuple[np.ndarray, list[dict[str, np.ndarray]], np.ndarray]:
        """The quantity of each of a sampler's first tasks, `[num_tasks]`, what the checks know of as many as are checked, and `sizes_of` them."""
        values, traces, sizes = [], [], []
        for start in range(0, num_tasks, BLOCK):
            tasks, key, check_keys = _sampled(sampler, root, start // BLOCK)
            outputs, kept = self._answer(params, tasks, key), min(BLOCK, num_tasks - start)
            values.append(np.asarray(self._measure(outputs, *tasks.query[1:]))[:kept])
            sizes.append(sizes_of(tasks.support, outputs.shape[-1])[:kept])
            if start < checked:
                found = self._checks.traces(params, tasks, key, check_keys, outputs, split)
                traces.append({name: of_tasks[:kept] for name, of_tasks in found.items()})
        return np.concatenate(values), traces, np.concatenate(sizes)

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
            indices = jnp.arange(jax.tree.leaves(tasks)[0].shape[0])
            # Whole on every device: the host reads it, of which there may be several.
            return lax.with_sharding_constraint(
                map_tasks(one, layout, (params, key), (tasks, indices)), layout.replicated
            )

        return lambda params, tasks, key: answered(
            params, lambda each: over_tasks(self._eval_layout(), each, tasks, key)
        )


def _sampled(sampler: Callable[[Array], Task], root: Array, block: int) -> tuple[Task, Array, Array]:
    """The `block`-th tasks that a key draws, the key of their adaptation, and those of three checks, `[3, BLOCK]`."""
    sample_key, adapt_key, check_key = jax.random.split(jax.random.fold_in(root, block), 3)
    return sampler(jax.random.split(sample_key, BLOCK)), adapt_key, jax.random.split(check_key, (3, BLOCK))


def sizes_of(support: Split, way: int) -> np.ndarray:
    """Way, at most `way`, and shot of support sets with a leading axis of tasks, `[n, 2]`; the shot is a mean over classes, rounded.

    Nothing is known, `[n, 0]`, of sets without masks, which are all of one size.
    """
    if support.mask is None:
        return np.zeros((len(support.y), 0), int)
    count = mask_of(support).sum(1)
    ways = ways_of(support, way) if support.y.ndim == 2 else np.ones_like(count)  # of a regression
    return np.stack([ways, np.rint(count / ways).astype(int)], 1)


def _in_fields(values: np.ndarray) -> dict[str, Any]:
    """The mean of some tasks as a result states it; of one task there is no interval."""
    value, ci95 = _with_ci95([values])
    return {"value": value, "ci95": ci95 if len(values) > 1 else None, "num_tasks": len(values)}


def _with_ci95(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean of the means of groups of tasks, and half the width of its 95% interval."""
    means, errors = [values.mean() for values in groups], [standard_error(values) for values in groups]
    return float(np.mean(means)), 1.96 * math.hypot(*errors) / len(groups)

"""Validation and test of few-shot learning: a learner answers the queries of tasks that are the same at every call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metarun.compiled.task_map import Layout, map_tasks, placed
from metarun.few_shot.learner_checks import CHECKED, LearnerChecks
from metarun.few_shot.losses import OBJECTIVES
from metarun.training.ensemble import answered
from metarun.trust.checks import standard_error
from metarun.types import Array, DataSet, Evaluation, Method, Params, Task

BLOCK = 50  # tasks of one dispatch: what bounds its memory, and how long a stop signal waits


class MetaTest:
    """Tests of a method's parameters on a data set's validation and test tasks.

    Args:
      method: the meta-learner.
      dataset: what the tasks are of.
      samplers: split -> `keys: [n] -> tasks`.
      layout: where tasks are computed.
      eval_layout: `() -> layout` of tasks that are answered, which may be known only once the run is prepared.
      eval_seed: what the tasks are drawn by.
      precision: of products, which bounds what a check takes for rounding.
    """

    def __init__(
        self,
        method: Method,
        dataset: DataSet,
        samplers: dict[str, Callable[[Array], Task]],
        layout: Layout,
        eval_layout: Callable[[], Layout],
        *,
        eval_seed: int,
        precision: str,
    ):
        self._samplers, self._layout, self._eval_layout, self._eval_seed = samplers, layout, eval_layout, eval_seed
        self.score = OBJECTIVES[dataset.objective]
        self._measure = jax.jit(
            jax.vmap(lambda outputs, y: self.score.measure(outputs, y).mean()),
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
        """As `Experiment.evaluate`."""
        params = placed(params, self._layout.replicated)
        blocks, checked = [], []
        for block in range(-(-num_tasks // BLOCK)):
            tasks, key, check_keys = self._sampled(split, block)
            outputs = self._answer(params, tasks, key)
            blocks.append(np.asarray(self._measure(outputs, tasks.query.y)))
            if checks and block * BLOCK < CHECKED:
                checked.append(self._checks.traces(params, tasks, key, check_keys, outputs, split))
        per_task = np.concatenate(blocks)[:num_tasks]
        verdicts = self._checks.verdicts(checked, num_tasks) if checks else {}
        ci95 = 1.96 * standard_error(per_task)
        return Evaluation(self.score.metric, float(per_task.mean()), ci95, num_tasks, per_task, verdicts)

    def examples(self, params: Params, num_tasks: int) -> Any:
        """As `Experiment.examples`: tasks, and the outputs on their queries before and after adaptation."""
        params = placed(params, self._layout.replicated)
        tasks, key, _ = self._sampled("test", 0)
        found = tasks, self._answer_unadapted(params, tasks, key), self._answer(params, tasks, key)
        return jax.tree.map(lambda x: np.asarray(x)[:num_tasks], found)

    def _sampled(self, split: str, block: int) -> tuple[Task, Array, Array]:
        """The `block`-th tasks of a split, the key of their adaptation, and those of three checks, `[3, BLOCK]`."""
        block_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._eval_seed), split == "test"), block)
        sample_key, adapt_key, check_key = jax.random.split(block_key, 3)
        tasks = self._samplers[split](jax.random.split(sample_key, BLOCK))
        return tasks, adapt_key, jax.random.split(check_key, (3, BLOCK))

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

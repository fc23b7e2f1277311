"""The outer steps of few-shot learning: which tasks a step draws, and how meta-parameters follow their outer gradients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metarun.compiled.memory import Fit
from metarun.compiled.outer_loop import updated
from metarun.compiled.task_map import Layout, map_tasks, mean_gradient, placed
from metarun.few_shot.padding import at_its_size
from metarun.few_shot.task_sources import stream_of
from metarun.system.shared_rows import by_rows
from metarun.types import Array, Inspection, Method, Metrics, Params, Task, TaskSource, TrainState

# `(params, task, key, step) -> (loss, metrics)`, of one task.
OuterLoss = Callable[[Params, Task, Array, Array], tuple[Array, Metrics]]


class MetaTraining:
    """Outer steps over tasks of one source.

    Args:
      variants: words -> the method, see `experiment.few_shot_experiment`.
      source: of the training tasks; its data are an argument of every step.
      optimizer: outer optimiser.
      layouts: chunk -> where tasks are computed with it.
      meta_batch_size: tasks of an outer step.
      padded: whether tasks have masks.
    """

    def __init__(
        self,
        variants: Mapping[str, Method],
        source: TaskSource,
        optimizer: optax.GradientTransformation,
        layouts: Mapping[int, Layout],
        meta_batch_size: int,
        padded: bool,
    ):
        self._variants, self._source, self._optimizer = variants, source, optimizer
        self._layouts, self._meta_batch_size, self._padded = layouts, meta_batch_size, padded
        self.sample_keys = jax.jit(self._sample_keys)
        self._inspected = jax.jit(self._each_by_itself, static_argnums=(0, 1, 2))

    def outer_step(self, variant: str, chunk: int) -> Callable[..., tuple[TrainState, Metrics]]:
        """`(state, data, root_key, fetched=None) -> (state, metrics)`: theta <- theta - update(mean_i grad L_i(theta))."""
        learner, layout = self._variants[variant], self._layouts[chunk]

        def outer_step(
            state: TrainState, data: Any, root_key: Array, fetched: Any = None
        ) -> tuple[TrainState, Metrics]:
            shared, tasks = (data, root_key, state.step), (jnp.arange(self._meta_batch_size), fetched)

            def gradient_of(loss: OuterLoss) -> Callable[[], tuple[Params, Metrics]]:
                def task_loss(params, shared, index_and_fetched):
                    task, method_key = self._task(shared, index_and_fetched)
                    of_task = lambda task: loss(params, task, method_key, shared[2])
                    return (by_rows(of_task, layout.mesh) if layout.together else of_task)(task)

                return lambda: mean_gradient(task_loss, layout, state.params, shared, tasks)

            # Chosen between gradients: the gradient of a choice would keep what both alternatives need for theirs.
            losses = [at_its_size(loss) if self._padded and chunk == 1 else loss for loss in _losses(learner)]
            phases = [gradient_of(loss) for loss in losses]
            gradient, metrics = lax.switch(_phase(learner, state.step), phases) if learner.early else phases[0]()
            params, opt_state = updated(self._optimizer, gradient, state.params, state.opt_state)
            return TrainState(state.step + 1, params, opt_state), metrics

        return outer_step

    def inspect(self, fit: Fit, state: TrainState, data: Any, root_key: Array, fetched: Any) -> Inspection:
        """As `Experiment.inspect`, of the program `fit`; `fetched` as of `outer_step`."""
        layout = next(iter(self._layouts.values()))
        state = placed(state, layout.replicated)
        phase = int(_phase(self._variants[fit.variant], jnp.int32(int(state.step))))
        shared, at = (data, root_key, state.step), layout._replace(chunk=fit.chunk)
        found = self._inspected(fit.variant, phase, at, state.params, shared, fetched)
        keys = jax.random.key_data(self.sample_keys(root_key, placed(jnp.int32(int(state.step)), layout.replicated)))
        return Inspection(np.asarray(keys), *jax.tree.map(np.asarray, found))

    def _sample_keys(self, root_key: Array, step: Array) -> Array:
        """The keys by which the tasks of an outer step are drawn, `[meta_batch_size]`."""
        return jax.vmap(lambda index: task_keys(root_key, step, index)[0])(jnp.arange(self._meta_batch_size))

    def _task(self, shared: tuple[Any, Array, Array], index_and_fetched: tuple[Array, Any]) -> tuple[Task, Array]:
        """A task of an outer step, and the key of the method."""
        (data, root_key, step), (index, fetched) = shared, index_and_fetched
        sample_key, method_key = task_keys(root_key, step, index)
        if fetched is None:
            return self._source.sample(data, sample_key), method_key
        return stream_of(self._source).cut(*fetched), method_key

    def _each_by_itself(self, variant, phase, layout, params, shared, fetched):
        """The tasks of an outer step, their losses, and the norms of their gradients."""
        loss = _losses(self._variants[variant])[phase]

        def one(params_and_shared, index_and_fetched):
            params, shared = params_and_shared
            task, key = self._task(shared, index_and_fetched)
            value, gradient = jax.value_and_grad(lambda params: loss(params, task, key, shared[2])[0])(params)
            return task, value, jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))

        tasks = jnp.arange(self._meta_batch_size), fetched
        found = map_tasks(one, layout, (params, shared), tasks)
        return lax.with_sharding_constraint(found, layout.for_host(self._meta_batch_size))


def task_keys(root_key: Array, step: Array, index: Array) -> Array:
    """The keys of a task of an outer step: of its drawing, and of the method."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(root_key, step), index))


def _losses(learner: Method) -> Sequence[OuterLoss]:
    """What meta-training follows, phase by phase."""
    return [*(loss for _, loss in learner.early), lambda *args: learner.loss(*args[:3])]


def _phase(learner: Method, step: Array) -> Array:
    ended: Any = sum((step >= end).astype(jnp.int32) for end, _ in learner.early)
    return ended

"""Outer steps as a compiled program: any number of them in one dispatch, and an account of what it takes.

Few-shot learning and reinforcement learning meet here. Each says what one outer step computes; `OuterLoop` compiles that
in the form that fits the memory, dispatches it, and makes the `Experiment` that the runner drives.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metarun.compiled.memory import Fit, fastest_that_fits
from metarun.compiled.streaming import Prefetch
from metarun.compiled.task_map import Layout, placed
from metarun.system.backend import at_precision
from metarun.types import Experiment, Metrics, Params, Plan, Program, TrainState


def several(one_step: Callable[..., tuple[TrainState, Metrics]]) -> Callable[..., tuple[TrainState, Metrics]]:
    """From `(state, *given) -> (state, metrics)`, one outer step, to `(state, *given, num_steps) -> (state, metrics)`.

    The metrics are means over the steps. The number of steps is an argument: any grouping of steps runs the same program,
    hence the same arithmetic.
    """

    one_step = jax.jit(one_step, inline=True)  # traced once, for its shapes and for the loop

    def steps(state: TrainState, *given_and_number: Any) -> tuple[TrainState, Metrics]:
        *given, num_steps = given_and_number

        def body(_, carry):
            state, sums = carry
            state, metrics = one_step(state, *given)
            return state, jax.tree.map(jnp.add, sums, metrics)

        metrics = jax.eval_shape(one_step, state, *given)[1]
        zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
        state, sums = lax.fori_loop(0, num_steps, body, (state, zeros))
        return state, jax.tree.map(lambda s: s / num_steps.astype(s.dtype), sums)

    return steps


class OuterLoop:
    """The outer steps of a run: compiled in the fastest form that fits, dispatched, and made an `Experiment`.

    Args:
      init: `() -> TrainState`, from the run's seed.
      outer_step: `(variant, chunk) -> (state, *given) -> (state, metrics)`, one step as a pure function; with `fetch`, it
        takes what was fetched as its last argument.
      given: arrays that every step is given beside the state, such as the data and the key of the run. They are arguments
        of the program, so that another seed does not compile it again.
      variants: of the method, in words, the fastest first.
      layouts: chunk -> where tasks are computed with it; of one mesh, the fastest first.
      meta_batch_size: tasks of an outer step.
      bytes_available: memory of a device, which decides between variants and chunks; None: the first will do.
      fetch: `step number -> what its tasks are cut from`, where images are streamed from the host.
    """

    def __init__(
        self,
        init: Callable[[], TrainState],
        outer_step: Callable[[str, int], Callable[..., tuple[TrainState, Metrics]]],
        given: tuple[Any, ...],
        variants: Sequence[str],
        layouts: dict[int, Layout],
        *,
        meta_batch_size: int,
        bytes_available: int | None,
        fetch: Callable[[int], Any] | None = None,
    ):
        self.init, self._outer_step, self._given, self._fetch = init, outer_step, given, fetch
        self._variants, self._layouts = list(variants), layouts
        self._meta_batch_size, self._bytes_available = meta_batch_size, bytes_available
        self._layout = next(iter(layouts.values()))
        self.eval_layout = self._layout._replace(together=False)  # until `prepare` has chosen
        self.fetched = None if fetch is None else Prefetch(fetch)

    @cached_property
    def fit(self) -> Fit:
        """The program in the fastest form that fits; raises `MetarunError` if none does."""
        arguments = shapes_on(self._layout, (jax.eval_shape(self.init), *self._given))
        if self._fetch is None:
            last, compiled = shapes_on(self._layout, jnp.int32(0)), lambda *form: several(self._outer_step(*form))
            arguments_and_last = (*arguments, last)
        else:
            compiled, arguments_and_last = self._outer_step, (*arguments, self._fetch(0))

        def compile_fn(variant: str, chunk: int) -> Any:
            return jax.jit(compiled(variant, chunk), donate_argnums=0).lower(*arguments_and_last).compile()

        return fastest_that_fits(compile_fn, self._variants, list(self._layouts), self._bytes_available, arguments)

    def prepare(self) -> Plan:
        """As `Experiment.prepare`."""
        self.eval_layout = self._layout._replace(chunk=self.fit.chunk, together=False)
        streams = self._fetch is not None
        return plan_of(self.fit, self._layout, self._meta_batch_size, streams, self._bytes_available)

    def step(self, state: TrainState, num_steps: int) -> tuple[TrainState, Metrics]:
        """As `Experiment.step`."""
        program = self.fit.program
        state, count = placed((state, jnp.int32(num_steps)), self._layout.replicated)
        if self.fetched is None:
            return program(state, *self._given, count)
        first, sums = int(state.step), None
        for number in range(first, first + num_steps):
            items = self.fetched(number)
            jax.block_until_ready(sums)  # so that no more than two steps' items are on a device
            state, metrics = program(state, *self._given, items)
            sums = metrics if sums is None else jax.tree.map(jnp.add, sums, metrics)
        return state, jax.tree.map(lambda total: total / num_steps, sums)

    def experiment(self, precision: str, **own: Any) -> Experiment:
        """The experiment whose outer steps these are.

        Args:
          precision: of products of float32 arrays in all that it computes, see `backend.PRECISIONS`.
          **own: the entries of `Experiment` that the loop does not know: inspect, evaluate, examples, metric, ...
        """
        program = None
        if self._fetch is None:
            program = Program(
                steps=lambda *form: several(self._outer_step(*form)),
                given=self._given,
                variants=self._variants,
                chunks=list(self._layouts),
                layout=self._layout,
                bytes_available=self._bytes_available,
            )
        experiment = Experiment(
            init=self.init,
            prepare=self.prepare,
            step=self.step,
            tasks_per_step=self._meta_batch_size,
            program=program,
            **own,
        )
        return _traced_at(precision, experiment)


def _traced_at(precision: str, experiment: Experiment) -> Experiment:
    """The experiment, whatever of which is traced has products of the run's `precision`, see `backend.at_precision`."""
    at, program = partial(at_precision, precision), experiment.program
    functions = ("init", "prepare", "step", "inspect", "evaluate", "sizes") + ("examples",) * bool(experiment.examples)
    scoped: dict[str, Any] = {name: at(getattr(experiment, name)) for name in functions}
    if program is not None:
        scoped["program"] = program._replace(steps=lambda *form: at(program.steps(*form)))
    return experiment._replace(**scoped)


def shapes_on(layout: Layout, tree: Any) -> Any:
    """The shapes of arrays that every device of a layout has whole, to compile for."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.replicated), tree)


def plan_of(fit: Fit, layout: Layout, num_tasks: int, streams: bool, bytes_available: int | None) -> Plan:
    """What `fit`, the program of an outer step over `num_tasks` tasks, takes on each device of `layout`."""
    devices = layout.mesh.size
    share = num_tasks if layout.together else -(-num_tasks // devices)
    form = devices, share, fit.chunk, layout.together, fit.variant, streams
    return Plan(*form, fit.predicted, bytes_available, fit.compile_seconds)


def updated(
    optimizer: optax.GradientTransformation, gradient: Params, params: Params, opt_state: Any
) -> tuple[Params, Any]:
    """Parameters and the optimiser's state after it has followed a gradient."""
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer counts by floats
        updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

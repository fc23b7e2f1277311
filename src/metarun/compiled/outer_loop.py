"""Outer steps as a compiled program: any number of them in one dispatch, and an account of what it takes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metarun.compiled.memory import Fit
from metarun.compiled.task_map import Layout
from metarun.system.backend import at_precision
from metarun.types import Experiment, Metrics, Params, Plan, TrainState


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


def traced_at(precision: str, experiment: Experiment) -> Experiment:
    """The experiment, whatever of which is traced has products of the run's `precision`, see `backend.at_precision`."""
    at, program = partial(at_precision, precision), experiment.program
    functions = ("init", "prepare", "step", "inspect", "evaluate", "sizes") + ("examples",) * bool(experiment.examples)
    scoped = {name: at(getattr(experiment, name)) for name in functions}
    if program is not None:
        scoped["program"] = program._replace(steps=lambda *form: at(program.steps(*form)))
    return experiment._replace(**scoped)


def shapes_on(layout: Layout, tree: Any) -> Any:
    """The shapes of arrays that every device of a layout has whole, to compile for."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.replicated), tree)


def plan_of(fit: Fit, layout: Layout, num_tasks: int, streams: bool, bytes_available: int | None) -> Plan:
    """What `fit`, the program of an outer step over `num_tasks` tasks, takes on each device of `layout`."""
    devices = layout.mesh.size
    share = -(-num_tasks // devices)
    return Plan(devices, share, fit.chunk, fit.variant, streams, fit.predicted, bytes_available, fit.compile_seconds)


def updated(
    optimizer: optax.GradientTransformation, gradient: Params, params: Params, opt_state: Any
) -> tuple[Params, Any]:
    """Parameters and the optimiser's state after it has followed a gradient."""
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer counts by floats
        updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

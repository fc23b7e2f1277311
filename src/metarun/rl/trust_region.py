"""Trust region policy optimisation: as far along the natural gradient as the policy may move, and no worse."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from metarun.compiled.task_map import Layout, map_tasks, mean_gradient
from metarun.rl.outer_step import Objective, OuterStep, reported
from metarun.types import Array, Metrics, Params

_ITERATIONS = 10  # of conjugate gradients
_DAMPING = 1e-5  # added to the Fisher matrix
_SHRINK, _TRIES = 0.8, 15  # of the line search


def trust_region(layout: Layout, *, radius: float) -> OuterStep:
    """One step of trust region policy optimisation over all tasks; it has no state.

    Args:
      layout: where tasks are computed.
      radius: largest mean divergence, in nats.

    Source: Schulman et al. 2015, Trust Region Policy Optimization, equation 14.
    """

    def step(
        objective: Objective, params: Params, opt_state: Any, experience: Any
    ) -> tuple[Params, Any, dict[str, Array]]:
        gradient, _ = mean_gradient(reported(objective), layout, params, (), experience)
        given = objective, layout, experience
        params, metrics = trust_region_step(
            params, gradient, partial(fisher_product, *given, params), partial(measured, *given), radius
        )
        return params, opt_state, metrics

    return OuterStep(lambda ratio, advantage: ratio * advantage, optax.identity().init, step)


def fisher_product(objective: Objective, layout: Layout, experience: Any, params: Params, vector: Params) -> Params:
    """F v = mean over tasks of J^T H J v, with J the Jacobian of the outputs and H the divergence's Hessian over them.

    That is the Hessian of the divergence where there is none yet: at the parameters that acted.

    Source: Schulman et al. 2015, appendix C.1.
    """

    def along(params: Params, vector: Params, experience: Any) -> tuple[Array, Metrics]:
        """A scalar whose gradient in `params` is J^T H J v."""
        outputs_of = lambda params: objective.outputs(params, experience)
        slope = jax.grad(lambda outputs: objective.divergence(outputs, experience))
        _, moved = jax.jvp(outputs_of, (lax.stop_gradient(params),), (vector,))  # J v
        _, curved = jax.jvp(slope, (objective.acted(experience),), (moved,))  # H J v
        pairs = zip(outputs_of(params), lax.stop_gradient(curved), strict=True)
        return sum(((outputs * curved).sum() for outputs, curved in pairs), start=jnp.zeros(())), {}

    return mean_gradient(along, layout, params, vector, experience)[0]


def measured(objective: Objective, layout: Layout, experience: Any, params: Params) -> tuple[Array, Array]:
    """The loss and the divergence of parameters, means over tasks."""

    def of_task(params: Params, experience: Any) -> tuple[Array, Array]:
        outputs = objective.outputs(params, experience)
        return objective.loss(params, experience), objective.divergence(outputs, experience)

    return jax.tree.map(lambda x: x.mean(0), map_tasks(of_task, layout, params, experience))


def trust_region_step(
    params: Params,
    gradient: Params,
    fisher_product: Callable[[Params], Params],
    measure: Callable[[Params], tuple[Array, Array]],
    radius: float,
) -> tuple[Params, dict[str, Array]]:
    """theta - c s, s = F^-1 g, with c the largest of 1, 0.8, 0.64, ... times sqrt(2 radius / s F s) that improves the loss
    within the radius; theta where none does.

    Args:
      params: theta.
      gradient: g, of the loss.
      fisher_product: `v -> F v`, v a pytree like `params`; F is the Hessian of the divergence at theta.
      measure: `params -> (loss, divergence)`, scalars; the divergence is from the policies that acted.
      radius: largest mean divergence, in nats.

    Returns:
      The new parameters; and "divergence", "step" (c, 0 where the old are kept) and "loss" of them.

    Source: Schulman et al. 2015, Trust Region Policy Optimization, section 6 and appendix C.
    """
    flat, unravel = ravel_pytree(params)
    g = ravel_pytree(gradient)[0]

    def product(v: Array) -> Array:
        return ravel_pytree(fisher_product(unravel(v)))[0] + _DAMPING * v

    direction, _ = cg(product, g, maxiter=_ITERATIONS)
    longest = jnp.sqrt(2 * radius / jnp.maximum(direction @ product(direction), 1e-12))
    before, _ = measure(params)

    def tried(size: Array) -> tuple[Array, Array, Array]:
        loss, divergence = measure(unravel(flat - size * direction))
        return size, loss, divergence

    def fails(attempt: tuple[Array, tuple[Array, Array, Array]]) -> Array:
        _, (_, loss, divergence) = attempt
        return ~((loss < before) & (divergence <= radius))

    def shrink(attempt: tuple[Array, tuple[Array, Array, Array]]) -> tuple[Array, tuple[Array, Array, Array]]:
        number, (size, _, _) = attempt
        return number + 1, tried(_SHRINK * size)

    attempt = lax.while_loop(
        lambda attempt: fails(attempt) & (attempt[0] < _TRIES), shrink, (jnp.int32(0), tried(longest))
    )
    size, loss, divergence = attempt[1]
    kept = fails(attempt)
    taken = jnp.where(kept, 0.0, size)
    found = {"loss": jnp.where(kept, before, loss), "divergence": jnp.where(kept, 0.0, divergence), "step": taken}
    return unravel(flat - taken * direction), found

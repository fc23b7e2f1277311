"""Proximal policy optimisation: several gradients of an objective that pays nothing for going far."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metarun.compiled.outer_loop import updated
from metarun.compiled.task_map import Layout, mean_gradient
from metarun.rl.outer_step import Objective, OuterStep, reported
from metarun.types import Array, Metrics, Params


def clipped(ratio: Array, advantage: Array, clip: float) -> Array:
    """min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A), whose gradient at a ratio of 1 is A grad log pi: that of A2C.

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, equation 7.
    """
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def proximal(layout: Layout, optimizer: optax.GradientTransformation, *, epochs: int, clip: float) -> OuterStep:
    """Follows `epochs` gradients, each over all tasks.

    Args:
      layout: where tasks are computed.
      optimizer: follows the gradients.
      epochs: gradients of an outer step.
      clip: epsilon.

    Source: Schulman et al. 2017, algorithm 1.
    """

    def step(
        objective: Objective, params: Params, opt_state: Any, experience: Any
    ) -> tuple[Params, Any, dict[str, Array]]:
        def follow(params_and_opt_state: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], Metrics]:
            params, opt_state = params_and_opt_state
            gradient, metrics = mean_gradient(reported(objective), layout, params, (), experience)
            return updated(optimizer, gradient, params, opt_state), metrics

        (params, opt_state), metrics = lax.scan(follow, (params, opt_state), length=epochs)
        return params, opt_state, jax.tree.map(lambda m: m.mean(0), metrics)

    return OuterStep(partial(clipped, clip=clip), optimizer.init, step)

"""Trust region policy optimisation: as far along the natural gradient as the policy may move, and no worse."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from metarun.types import Array, Params

_ITERATIONS = 10  # of conjugate gradients
_DAMPING = 1e-5  # added to the Fisher matrix
_SHRINK, _TRIES = 0.8, 15  # of the line search


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

    def product(v):
        return ravel_pytree(fisher_product(unravel(v)))[0] + _DAMPING * v

    direction, _ = cg(product, g, maxiter=_ITERATIONS)
    longest = jnp.sqrt(2 * radius / jnp.maximum(direction @ product(direction), 1e-12))
    before, _ = measure(params)

    def tried(size):
        loss, divergence = measure(unravel(flat - size * direction))
        return size, loss, divergence

    def fails(attempt):
        _, (_, loss, divergence) = attempt
        return ~((loss < before) & (divergence <= radius))

    def shrink(attempt):
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

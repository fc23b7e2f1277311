"""Gradient descent on the support loss, differentiable in its starting point."""

from collections.abc import Callable
from math import isqrt

import jax
from jax import lax

from metarun.types import Array, Params

_FEW = 10  # copies of the parameters, a few: with more inner steps than this, rematerialisation has two levels


def gradient_descent(
    loss_fn: Callable[[Params], Array],
    params: Params,
    *,
    lr: float,
    num_steps: int,
    first_order: bool = False,
    remat: bool = False,
    adapts: Callable[[str], bool] = lambda name: True,
) -> Params:
    """theta_{i+1} = theta_i - lr * grad loss_fn(theta_i), `num_steps` times.

    Args:
      loss_fn: support loss of the parameters, a scalar.
      params: theta_0, a pytree of arrays.
      lr: step size.
      num_steps: number of steps; 0 returns `params`.
      first_order: treat the gradients as constants, so that d theta_k / d theta_0 is the identity.
      remat: compute the steps again in the backward pass instead of keeping their activations: memory of one step
        and of about 2 sqrt(num_steps) copies of the parameters, for a third to two thirds more time.
      adapts: whether the parameter of that name ("layer/kernel") is adapted; the others stay as they are.

    Returns:
      theta_k, of the same structure.

    Source: Finn et al. 2017, Model-Agnostic Meta-Learning, equation 1; first order: section 5.2.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(params)
    adapted = [adapts("/".join(str(entry.key) for entry in path)) for path, _ in named]
    start = [leaf for (_, leaf), fast in zip(named, adapted, strict=True) if fast]

    def merge(fast_leaves):
        fast = iter(fast_leaves)
        return structure.unflatten(
            [next(fast) if moves else leaf for (_, leaf), moves in zip(named, adapted, strict=True)]
        )

    def step(fast_leaves, _):
        gradient = jax.grad(lambda leaves: loss_fn(merge(leaves)))(fast_leaves)
        if first_order:
            gradient = lax.stop_gradient(gradient)
        return [leaf - lr * g for leaf, g in zip(fast_leaves, gradient, strict=True)], None

    if remat:
        return merge(_rematerialised(step, start, num_steps))
    # Scanned, so that the compile time is that of one step; as fast as unrolled.
    return merge(lax.scan(step, start, None, length=num_steps)[0])


def _rematerialised(step, start, num_steps):
    """Scans `step` `num_steps` times; the backward pass keeps copies of its carry alone, and computes all else again.

    Many steps fall into segments of about sqrt(num_steps): between segments a copy each is kept, and while a segment
    is differentiated one for each of its steps. Scans are never unrolled here: XLA would merge steps and their
    recomputations, and keep the activations after all.
    """

    def scan(body, carry, length):
        return lax.scan(jax.checkpoint(body, prevent_cse=False), carry, None, length=length)

    segment = isqrt(num_steps) if num_steps > _FEW else 1
    if segment > 1:
        start, _ = scan(lambda carry, _: scan(step, carry, segment), start, num_steps // segment)
        num_steps %= segment
    return scan(step, start, num_steps)[0]

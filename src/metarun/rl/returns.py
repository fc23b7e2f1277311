"""What is earned from a step on, and how much better that is than expected."""

import jax.numpy as jnp
from jax import lax

from metarun.types import Array


def discounted(rewards: Array, discount: float, ends: Array | None = None) -> Array:
    """R_t = r_t + discount R_{t+1}, `[length]`; nothing is carried over where `ends`."""
    keep = jnp.ones_like(rewards) if ends is None else 1.0 - ends

    def back(later, reward_and_keep):
        reward, keep = reward_and_keep
        total = reward + discount * keep * later
        return total, total

    return lax.scan(back, jnp.zeros(()), (rewards, keep), reverse=True)[1]


def advantages(rewards: Array, values: Array, last_value: Array, discount: float, decay: float) -> Array:
    """Generalised advantage estimation over a trial, whose episodes count as one stretch of time.

    A_t = delta_t + discount decay A_{t+1}, delta_t = r_t + discount V_{t+1} - V_t.

    Args:
      rewards: r, `[length]`.
      values: V, `[length]`.
      last_value: V after the last step; 0 at the end of a trial, after which nothing is earned.
      discount: gamma.
      decay: lambda.

    Returns:
      A, `[length]`.

    Source: Schulman et al. 2016, High-Dimensional Continuous Control Using Generalized Advantage Estimation, equation 16.
    """
    following = jnp.concatenate([values[1:], jnp.reshape(last_value, 1)])
    return discounted(rewards + discount * following - values, discount * decay)


def normalised(advantage: Array, weight: Array, least: float | Array = 1e-8) -> Array:
    """Advantages of a batch brought to mean 0 and standard deviation 1, those of weight 0 left out.

    Args:
      advantage: of any shape.
      weight: of the same, 1 or 0.
      least: standard deviation below which they stay smaller: where all is worth the same, what is left is rounding.
    """
    count = weight.sum()
    mean = (advantage * weight).sum() / count
    deviation = jnp.sqrt((weight * (advantage - mean) ** 2).sum() / count)
    return weight * (advantage - mean) / jnp.maximum(deviation, least)


def mean_over(values: Array, weight: Array) -> Array:
    """The mean of `values` where `weight` is 1."""
    return (values * weight).sum() / jnp.maximum(weight.sum(), 1.0)

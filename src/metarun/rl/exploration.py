"""E-MAML: rollouts before a gradient step are credited for the return after it.

Source: Stadie et al. 2018, Some Considerations on Learning to Explore via Meta-Reinforcement Learning, section 3.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax.numpy as jnp

from metarun.types import Array, Params

Batch = TypeVar("Batch")


def credit_of(returns: Array) -> Array:
    """By how much each task's return exceeds the mean of the others', in their standard deviations, `[n]` -> `[n]`.

    That a task is not held against itself leaves the gradient of the expected return unbiased. All 0 for one task, or
    equal returns.
    """
    others = (returns.sum() - returns) / jnp.maximum(returns.size - 1, 1)
    return jnp.where(returns.size > 1, returns - others, 0.0) / (returns.std() + 1e-8)


def exploration_gain(
    gain: Callable[[Params, Batch, Array], Array], stages: Sequence[Params], batches: Sequence[Batch], credit: Array
) -> Array:
    """The sum over the gradient steps of what the rollouts before each gain, with one credit for all their actions.

    Args:
      gain: `(params, batch, advantage) -> scalar`.
      stages: theta_0, ..., theta_k, the parameters before each gradient step and after the last.
      batches: what was gathered by each of them.
      credit: of the task, a scalar.
    """
    before = zip(stages[:-1], batches[:-1], strict=True)
    return sum((gain(params, batch, credit) for params, batch in before), start=jnp.zeros(()))

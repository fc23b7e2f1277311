"""What proximal policy optimisation maximises."""

import jax.numpy as jnp

from metarun.types import Array


def clipped(ratio: Array, advantage: Array, clip: float) -> Array:
    """min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A), whose gradient at a ratio of 1 is A grad log pi: that of A2C.

    Source: Schulman et al. 2017, equation 7.
    """
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)

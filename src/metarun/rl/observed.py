"""Observations of mean 0 and variance 1, by what has been observed so far."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from metarun.types import Array

_NEGLIGIBLE = 1e-8  # added to a variance, for what never changes
_FAR = 10.0  # standard deviations from the mean beyond which all is as far


class Moments(NamedTuple):
    """Of all observations so far, by component. They are kept among a policy's parameters, and have no gradient.

    Attributes:
      weight: how many there were, a scalar.
      mean: `[observation_size]`.
      variance: `[observation_size]`.
    """

    weight: Array
    mean: Array
    variance: Array


def of_nothing(size: int) -> Moments:
    """Before any observation; by them observations stay as they are, within bounds."""
    return Moments(jnp.zeros(()), jnp.zeros(size), jnp.ones(size))


def including(moments: Moments, observation: Array, weight: Array) -> Moments:
    """The moments with further observations in them.

    Args:
      moments: so far.
      observation: `[..., observation_size]`.
      weight: 1 for what counts, else 0, `[...]`.

    Source: Chan et al. 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, equation 2.1.
    """
    observation, weight = observation.reshape(-1, observation.shape[-1]), weight.ravel()
    new = jnp.maximum(weight.sum(), 1.0)
    mean = weight @ observation / new
    variance = weight @ (observation - mean[None]) ** 2 / new
    total = moments.weight + new
    share = new / total
    apart = mean - moments.mean
    return Moments(
        total,
        moments.mean + share * apart,
        (1 - share) * moments.variance + share * variance + share * (1 - share) * apart**2,
    )


def standardised(moments: Moments, observation: Array) -> Array:
    """Observations less the mean, over the standard deviation, within bounds; `[n, observation_size]`."""
    moments = lax.stop_gradient(moments)
    scaled = (observation - moments.mean[None]) / jnp.sqrt(moments.variance + _NEGLIGIBLE)[None]
    return jnp.clip(scaled, -_FAR, _FAR)

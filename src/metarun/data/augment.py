"""Random changes of images that leave their class as it is, on the device, as pure functions of a key."""

import jax
import jax.numpy as jnp
from jax import lax, random

from metarun.types import Array

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in a grey, ITU-R BT.601


def flipped(key: Array, x: Array) -> Array:
    """Mirrors each image left to right with probability 1/2: `[n, height, width, channel]` likewise."""
    mirrored = random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)


def shifted(key: Array, x: Array, most: int) -> Array:
    """Shifts each image by whole pixels, uniform in [-most, most] down and across, over its own mirrored border.

    Args:
      x: `[n, height, width, channel]`.
      most: less than height and width.

    Source: the padding and random crop of He et al. 2016, Deep Residual Learning, section 4.2.
    """
    padded = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)), mode="reflect")
    corners = random.randint(key, (x.shape[0], 2), 0, 2 * most + 1)
    return jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:]))(padded, corners)


def jittered(key: Array, x: Array, strength: float) -> Array:
    """Changes brightness, contrast and, of colour images, saturation, in this order; results stay in [0, 1].

    Each is by a factor of an image's own, uniform in [1 - strength, 1 + strength]: of the image, of its difference from
    its mean grey, and of its difference from its own greys.

    Args:
      x: `[n, height, width, channel]` in [0, 1], with 1 or 3 channels.
      strength: above 0, at most 1.
    """
    factors = random.uniform(key, (3, x.shape[0], 1, 1, 1), x.dtype, 1 - strength, 1 + strength)
    x = jnp.clip(factors[0] * x, 0, 1)
    x = _blend(grey(x).mean((1, 2, 3), keepdims=True), x, factors[1])
    return _blend(grey(x), x, factors[2])


def grey(x: Array) -> Array:
    """The greys of colours, or of greys themselves: `[n, height, width, channel]` -> `[n, height, width, 1]`."""
    if x.shape[3] == 1:
        return x
    return jnp.sum(x * jnp.asarray(LUMA, x.dtype)[None, None, None], 3, keepdims=True)


def _blend(base: Array, x: Array, factor: Array) -> Array:
    return jnp.clip(base + factor * (x - base), 0, 1)

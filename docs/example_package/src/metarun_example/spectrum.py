"""A network of a signal's spectrum, which does not depend on when the signal begins."""

import jax
import jax.numpy as jnp

from metarun.errors import positive_int
from metarun.types import Model


def spectrum(*, num_outputs, hidden=64):
    """|FFT| of each channel, and two dense layers of `hidden` units; then one of `num_outputs`, unless it is None.

    Inputs are `[n, length, channels]`.
    """
    hidden = positive_int("model.hidden", hidden)

    def init(key, x):
        sizes = [(x.shape[1] // 2 + 1) * x.shape[2], hidden, hidden]
        sizes += [] if num_outputs is None else [num_outputs]
        keys = jax.random.split(key, len(sizes) - 1)
        return {
            f"dense{i}": {
                "kernel": jax.random.normal(keys[i], (size, sizes[i + 1])) * jnp.sqrt(2.0 / size),
                "bias": jnp.zeros(sizes[i + 1]),
            }
            for i, size in enumerate(sizes[:-1])
        }

    def apply(params, x, reference=None):
        # The logarithm of the power, with a small number that keeps the slope at silence finite.
        waves = jnp.fft.rfft(x, axis=1)
        features = jnp.log(waves.real**2 + waves.imag**2 + 1e-2).reshape(x.shape[0], -1)
        for i in range(len(params)):
            layer = params[f"dense{i}"]
            features = features @ layer["kernel"] + layer["bias"][None]
            if i < 2:
                features = jax.nn.relu(features)
        return features

    return Model(init, apply)

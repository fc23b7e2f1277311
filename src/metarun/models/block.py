"""What the few-shot literature's convolutional networks are made of, and what their factories share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from metarun.errors import ConfigError, one_of
from metarun.models.convolution import convolve, max_pool, set_norm
from metarun.system.backend import PRECISIONS
from metarun.types import Array, Model, Reference

NORMS = ("batch", "layer", "none")
# The model for an input of so many axes.
_FITTING = {2: "conv1d", 3: "conv4"}


class Block(nn.Module):
    """Convolution, normalisation, downsampling and a nonlinearity.

    Attributes:
      filters: output channels.
      downsample: "stride" or "max_pool", which halve height and width, or "none".
      norm: one of `NORMS`: statistics of the set at hand, or of its first `reference` rows; of each row; or none.
      norm_scale: whether the normalisation has a learnt scale besides its shift.
      compute_dtype: of convolution and pooling; None: that of the input.
      size: of the kernel: 3, or 1 without downsampling.
      activation: the nonlinearity, which may not fall: it changes places with the pooling.
    """

    filters: int
    downsample: str
    norm: str
    norm_scale: bool
    compute_dtype: jnp.dtype | None
    size: int = 3
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, reference: Reference) -> Array:
        """`[n, height, width, c]` -> `[n, height', width', filters]`."""
        dtype = x.dtype  # of parameters and statistics
        shape = (self.size, self.size, x.shape[-1], self.filters)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, dtype)
        shift = self.param("norm_shift", nn.initializers.zeros, (self.filters,), dtype)
        scale = self.param("norm_scale", nn.initializers.ones, (self.filters,), dtype) if self.norm_scale else None
        x, kernel = (a.astype(self.compute_dtype or dtype) for a in (x, kernel))
        x = x @ kernel[0, 0] if self.size == 1 else convolve(x, kernel, 2 if self.downsample == "stride" else 1)
        factor, offset = scale, shift
        if self.norm == "batch":
            factor, offset = set_norm(x, scale, shift, reference)
        elif self.norm == "layer":
            x = x.astype(dtype)
            mean = x.mean((1, 2, 3), keepdims=True)
            x = (x - mean) / jnp.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)
        # Pooling comes before the affine map and the nonlinearity, with the same result, on a quarter of the pixels.
        if self.downsample == "max_pool":
            x = max_pool(x, None if factor is None else factor.astype(x.dtype))
        x = x.astype(dtype)
        if factor is not None:
            x = x * factor.reshape(1, 1, 1, -1)
        return self.activation(x + offset.reshape(1, 1, 1, -1))


def compute_dtype(precision: str) -> jnp.dtype | None:
    """The type of convolutions and pooling under a run's `precision`; None: that of the input.

    Raises:
      ConfigError: for an unknown precision.
    """
    return jnp.bfloat16 if one_of("precision", precision, PRECISIONS) == "bfloat16" else None


def image_model(module: Any, name: str, smallest: int, remedy: tuple[str, object, str]) -> Model:
    """A module over images as a `Model` that says what it cannot read.

    Args:
      module: of Flax, called with `x: [n, height, width, channel]` and `reference`.
      name: of the model, as on the command line.
      smallest: height and width that an image must have.
      remedy: key, value and way out that are named where an image is smaller.
    """

    def init(key, x):
        refuse_shape(name, x.shape[1:], 3)
        if min(x.shape[1:3]) < smallest:
            setting, value, way_out = remedy
            raise ConfigError(setting, value, f"{way_out}: images of {x.shape[1]}x{x.shape[2]} are too small")
        return module.init(key, x)["params"]

    return Model(
        init=init,
        apply=lambda params, x, reference=None: module.apply({"params": params}, x, reference),
    )


def refuse_shape(name: str, shape: Sequence[int], axes: int) -> None:
    """Raises `ConfigError`, which names a model that fits, where an input of `shape` has not so many axes.

    Args:
      name: of the model, as on the command line.
      shape: of one input, `[*feature]`.
      axes: that the model reads: 3 of an image, 2 of a signal.
    """
    if len(shape) == axes:
        return
    kinds = {1: "rows of numbers", 2: "signals, [length, channel]", 3: "images, [height, width, channel]"}
    what = kinds.get(len(shape), "arrays")
    allowed = f"model={_FITTING.get(len(shape), 'mlp')}, for inputs are {what}: each has shape {list(shape)}"
    if axes == 2 and len(shape) == 1:
        allowed += f"; or, if a row is a signal, x of shape [n, {shape[0]}, 1]"
    raise ConfigError("model", name, allowed)

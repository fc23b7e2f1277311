"""A convolutional network for signals: convolutions over one axis."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from metarun.errors import ConfigError, one_of, positive_int, true_or_false
from metarun.models.block import NORMS, compute_dtype, refuse_shape
from metarun.models.convolution import set_norm
from metarun.types import Array, Model, Reference


def convolve_signal(x: Array, kernel: Array, stride: int) -> Array:
    """Convolution over the length, with zeros at both ends, so that each output is centred at an input.

    As a matrix product over what each output sees, it stays one where kernels differ between tasks, and is
    differentiated any number of times.

    Args:
      x: `[n, length, in]`.
      kernel: `[size, in, out]`, `size` odd.
      stride: inputs from one output to the next.

    Returns:
      `[n, ceil(length / stride), out]`.
    """
    size, length = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
    seen = jnp.concatenate([padded[:, i : i + length : stride] for i in range(size)], -1)
    return seen @ kernel.reshape(-1, kernel.shape[2])


class _Block(nn.Module):
    """Convolution, normalisation and ReLU, with the names of parameters that `block.Block` has."""

    filters: int
    kernel: int
    stride: int
    norm: str
    compute_dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: Array, reference: Reference) -> Array:
        """`[n, length, c]` -> `[n, ceil(length / stride), filters]`."""
        dtype = x.dtype  # of parameters and statistics
        shape = (self.kernel, x.shape[-1], self.filters)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, dtype)
        shift = self.param("norm_shift", nn.initializers.zeros, (self.filters,), dtype)
        x, kernel = (a.astype(self.compute_dtype or dtype) for a in (x, kernel))
        x = convolve_signal(x, kernel, self.stride)
        if self.norm == "none":
            return nn.relu(x.astype(dtype) + shift[None, None])
        scale = self.param("norm_scale", nn.initializers.ones, (self.filters,), dtype)
        if self.norm == "batch":
            factor, offset = set_norm(x, scale, shift, reference)
            return nn.relu(x.astype(dtype) * factor[None, None] + offset[None, None])
        x = x.astype(dtype)
        x = (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
        return nn.relu(x * scale[None, None] + shift[None, None])


class _Conv1d(nn.Module):
    num_outputs: int | None
    filters: int
    blocks: int
    kernel: int
    stride: int
    norm: str
    mean_pool: bool
    compute_dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: Array, reference: Reference = None) -> Array:
        shared = self.filters, self.kernel, self.stride, self.norm, self.compute_dtype
        for i in range(self.blocks):
            x = _Block(*shared, name=f"conv{i}")(x, reference)
        if self.mean_pool:
            x = x.mean(1)
        if self.num_outputs is None:
            return x
        x = x.reshape(x.shape[0], -1)
        kernel_init = nn.initializers.glorot_uniform()
        return nn.Dense(self.num_outputs, param_dtype=x.dtype, kernel_init=kernel_init, name="head")(x)


def conv1d(
    *,
    num_outputs: int | None,
    filters: int = 64,
    blocks: int = 4,
    kernel: int = 5,
    stride: int = 2,
    norm: str = "batch",
    mean_pool: bool = True,
    precision: str = "float32",
) -> Model:
    """Blocks of convolution over the length, normalisation and ReLU; then a linear layer.

    Args:
      num_outputs: outputs of the linear layer; None: no linear layer, the outputs are the last block's.
      filters: channels of every block (`model.filters`).
      blocks: how many.
      kernel: inputs that an output of a block sees, an odd number.
      stride: of each block, by which the length is divided.
      norm: "batch" (statistics of the set at hand), "layer" (statistics of each signal alone), or "none".
      mean_pool: average over the length that is left; False: keep it, so that a place in the signal has a meaning.
      precision: "bfloat16": convolutions are computed in it, as in `conv4`.

    Returns:
      A `Model` for signals `[n, length, channel]`.

    Raises:
      ConfigError: for a value that is not allowed, and for inputs of another shape.

    Source: Conv-4 (Vinyals et al. 2016, section 4.1), with one axis in the place of two.
    """
    size = positive_int("model.kernel", kernel)
    if size % 2 == 0:
        raise ConfigError("model.kernel", kernel, "an odd number, such as 5")
    module: Any = _Conv1d(
        None if num_outputs is None else positive_int("way", num_outputs),
        positive_int("model.filters", filters),
        positive_int("model.blocks", blocks),
        size,
        positive_int("model.stride", stride),
        one_of("model.norm", norm, NORMS),
        true_or_false("model.mean_pool", mean_pool),
        compute_dtype(precision),
    )

    def init(key, x):
        refuse_shape("conv1d", x.shape[1:], 2)
        return module.init(key, x)["params"]

    return Model(
        init=init,
        apply=lambda params, x, reference=None: module.apply({"params": params}, x, reference),
    )

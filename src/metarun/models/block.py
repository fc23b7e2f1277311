"""The block of which the few-shot literature's small convolutional networks are made."""

import jax.numpy as jnp
from flax import linen as nn

from metarun.models.convolution import convolve, max_pool, set_norm
from metarun.types import Array

NORMS = ("batch", "layer", "none")


class Block(nn.Module):
    """Convolution, normalisation, ReLU and downsampling.

    Attributes:
      filters: output channels.
      downsample: "stride" or "max_pool", which halve height and width, or "none".
      norm: one of `NORMS`: statistics of the set at hand, or of its first `reference` rows; of each row; or none.
      norm_scale: whether the normalisation has a learnt scale besides its shift.
      compute_dtype: of convolution and pooling; None: that of the input.
    """

    filters: int
    downsample: str
    norm: str
    norm_scale: bool
    compute_dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: Array, reference: int | None) -> Array:
        """`[n, height, width, c]` -> `[n, height', width', filters]`."""
        dtype = x.dtype  # of parameters and statistics
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (3, 3, x.shape[-1], self.filters), dtype)
        shift = self.param("norm_shift", nn.initializers.zeros, (self.filters,), dtype)
        scale = self.param("norm_scale", nn.initializers.ones, (self.filters,), dtype) if self.norm_scale else None
        x, kernel = (a.astype(self.compute_dtype or dtype) for a in (x, kernel))
        x = convolve(x, kernel, 2 if self.downsample == "stride" else 1)
        factor, offset = scale, shift
        if self.norm == "batch":
            factor, offset = set_norm(x, scale, shift, reference)
        elif self.norm == "layer":
            x = x.astype(dtype)
            mean = x.mean((1, 2, 3), keepdims=True)
            x = (x - mean) / jnp.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)
        # Pooling comes before the affine map and the ReLU, with the same result, on a quarter of the pixels.
        if self.downsample == "max_pool":
            x = max_pool(x, None if factor is None else factor.astype(x.dtype))
        x = x.astype(dtype)
        if factor is not None:
            x = x * factor.reshape(1, 1, 1, -1)
        return nn.relu(x + offset.reshape(1, 1, 1, -1))

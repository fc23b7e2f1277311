"""The four-layer convolutional network of the few-shot literature."""

import jax.numpy as jnp
from flax import linen as nn

from metarun.errors import ConfigError, non_negative_int, one_of, positive_int, true_or_false
from metarun.models.block import NORMS, Block, compute_dtype, image_model
from metarun.types import Array, Model, Reference

DOWNSAMPLES = ("stride", "max_pool")
BLOCKS = 4


class _Conv4(nn.Module):
    num_outputs: int | None
    filters: int
    downsample: str
    halvings: int
    norm: str
    norm_scale: bool
    compute_dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: Array, reference: Reference = None) -> Array:
        shared = self.norm, self.norm_scale, self.compute_dtype
        for i in range(BLOCKS):
            downsample = self.downsample if i < self.halvings else "none"
            x = Block(self.filters, downsample, *shared, name=f"conv{i}")(x, reference)
        if self.num_outputs is None:
            return x
        x = x.reshape(x.shape[0], -1)
        kernel_init = nn.initializers.glorot_uniform()
        return nn.Dense(self.num_outputs, param_dtype=x.dtype, kernel_init=kernel_init, name="head")(x)


def conv4(
    *,
    num_outputs: int | None,
    filters: int = 64,
    downsample: str = "stride",
    halvings: int = BLOCKS,
    norm: str = "batch",
    norm_scale: bool = True,
    precision: str = "float32",
) -> Model:
    """Four blocks of 3x3 convolution, normalisation, ReLU and downsampling by two; then a linear layer.

    Args:
      num_outputs: outputs of the linear layer, the way; None: no linear layer, the outputs are the last block's,
        `[n, height, width, filters]`.
      filters: channels of every block (`model.filters`): 64 for Omniglot and 32 for miniImageNet in MAML.
      downsample: "stride" (stride 2, Omniglot in MAML) or "max_pool" (2x2, miniImageNet).
      halvings: blocks that halve height and width, the first ones; the last 4 - halvings keep them. 2 in relation
        networks, which need larger maps to compare.
      norm: "batch" (statistics of the set at hand, never running ones), "layer" (statistics of each image alone), or
        "none".
      norm_scale: whether the normalisation has a learnt scale besides its shift; MAML's published code has none.
      precision: "bfloat16": convolutions and pooling are computed in it, while parameters, statistics, affine maps and
        the linear layer stay in the type of the input; "float32" and "tensorfloat32": all in the type of the input.

    Returns:
      A `Model` for images `[n, height, width, channel]`, which under max-pooling must have pixels left to halve.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Vinyals et al. 2016, Matching Networks, section 4.1; Finn et al. 2017, section 5.2.
    """
    halvings = non_negative_int("model.halvings", halvings)
    if halvings > BLOCKS:
        raise ConfigError("model.halvings", halvings, f"at most {BLOCKS}, the number of blocks")
    module = _Conv4(
        None if num_outputs is None else positive_int("way", num_outputs),
        positive_int("model.filters", filters),
        one_of("model.downsample", downsample, DOWNSAMPLES),
        halvings,
        one_of("model.norm", norm, NORMS),
        true_or_false("model.norm_scale", norm_scale),
        compute_dtype(precision),
    )
    smallest = 2**halvings if downsample == "max_pool" else 1
    return image_model(module, "conv4", smallest, ("model.downsample", downsample, "stride"))

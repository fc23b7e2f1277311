"""The twelve-layer residual network of the few-shot literature."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from metarun.errors import one_of, positive_int, positive_ints, true_or_false
from metarun.models.block import NORMS, Block, compute_dtype, image_model
from metarun.models.convolution import max_pool
from metarun.types import Array, Model, Reference

_LEAK = 0.1  # slope of the nonlinearity below zero


def _linear(x: Array) -> Array:
    return x


class _ResidualBlock(nn.Module):
    """pool(leaky(f(x) + g(x))): f is three 3x3 convolutions, g one of 1x1, each followed by normalisation."""

    block: Callable[..., Block]

    @nn.compact
    def __call__(self, x: Array, reference: Reference) -> Array:
        leaky = partial(nn.leaky_relu, negative_slope=_LEAK)
        y = x
        for i, activation in enumerate((leaky, leaky, _linear)):
            y = self.block(activation=activation, name=f"conv{i}")(y, reference)
        return max_pool(leaky(y + self.block(size=1, activation=_linear, name="shortcut")(x, reference)))


class _ResNet12(nn.Module):
    num_outputs: int | None
    filters: tuple[int, ...]
    top: int | None
    mean_pool: bool
    norm: str
    norm_scale: bool
    compute_dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: Array, reference: Reference = None) -> Array:
        settings: dict[str, Any] = {
            "norm": self.norm,
            "norm_scale": self.norm_scale,
            "compute_dtype": self.compute_dtype,
        }
        for i, filters in enumerate(self.filters):
            x = _ResidualBlock(partial(Block, filters, "none", **settings), name=f"block{i}")(x, reference)
        dense = partial(nn.Dense, param_dtype=x.dtype, kernel_init=nn.initializers.glorot_uniform())
        if self.top is not None:
            x = dense(self.top, name="top")(x)  # of each pixel: a 1x1 convolution
        if self.mean_pool:
            x = x.mean((1, 2))
        if self.top is not None:
            x = nn.relu(x)
        if self.num_outputs is None:
            return x
        return dense(self.num_outputs, name="head")(x.reshape(x.shape[0], -1))


def resnet12(
    *,
    num_outputs: int | None,
    filters: Sequence[int] = (64, 96, 128, 256),
    top: int | None = None,
    mean_pool: bool = True,
    norm: str = "batch",
    norm_scale: bool = True,
    precision: str = "float32",
) -> Model:
    """Residual blocks of three 3x3 convolutions, each block halving height and width, then a linear layer.

    Args:
      num_outputs: outputs of the linear layer, the way; None: no linear layer.
      filters: channels of each block (`model.filters`): [64, 96, 128, 256] in SNAIL, [64, 160, 320, 640] in MetaOptNet.
      top: channels of a 1x1 convolution above the blocks; 2048 in SNAIL; None: there is none.
      mean_pool: average over the pixels that are left; false, as in MetaOptNet: keep them all.
      norm: "batch", "layer" or "none", as in `conv4`.
      norm_scale: whether the normalisation has a learnt scale besides its shift.
      precision: as in `conv4`.

    Returns:
      A `Model` for images `[n, height, width, channel]`. The papers' dropout is not part of it: here a network has
      no randomness.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Mishra et al. 2018, A Simple Neural Attentive Meta-Learner, appendix B; Lee et al. 2019, Meta-Learning with
    Differentiable Convex Optimization, section 4.1.
    """
    module = _ResNet12(
        None if num_outputs is None else positive_int("way", num_outputs),
        positive_ints("model.filters", filters, "[64,96,128,256]", least=1),
        None if top is None else positive_int("model.top", top),
        true_or_false("model.mean_pool", mean_pool),
        one_of("model.norm", norm, NORMS),
        true_or_false("model.norm_scale", norm_scale),
        compute_dtype(precision),
    )
    remedy = ("model.filters", list(filters), "fewer blocks, each of which halves height and width")
    return image_model(module, "resnet12", 2 ** len(filters), remedy)

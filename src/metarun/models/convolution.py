"""Convolution, pooling and normalisation in the forms that are fast when differentiated more than once.

A convolution is bilinear, so its derivatives of every order are made of three operations: the convolution itself, its
gradient with respect to the input, and its gradient with respect to the kernel. Each is written once, in its fastest
form, and each names the other two as its derivative; reverse-mode differentiation of any order then never leaves the
three. Forward-mode differentiation (`jax.jvp`) is not defined for them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from metarun.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PADDING = 1  # on each side: with a 3x3 kernel, a map of size h becomes ceil(h / stride)


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """3x3 convolution, zero padding of one pixel on each side.

    Args:
      x: `[n, height, width, in]`.
      kernel: `[3, 3, in, out]`.
      stride: 1 or 2.

    Returns:
      `[n, ceil(height / stride), ceil(width / stride), out]`.
    """
    return _convolution(x, kernel, stride)


def _direct(x: Array) -> bool:
    """Whether XLA's own convolution is the fastest form here.

    Elsewhere than on a CPU, kernels that differ between tasks would make it a grouped convolution, and on a CPU its
    second derivatives and very small maps fall to slow paths: matrix products over patches serve there.
    """
    return jax.default_backend() == "cpu" and x.shape[1] > 4


def _shifted(x: Array, i: int, j: int, stride: int) -> Array:
    """What tap (i, j) of a kernel sees of the padded input `x`: `[n, oh, ow, c]`."""
    rows, columns = x.shape[1] - 3 + 1, x.shape[2] - 3 + 1
    return x[:, i : i + rows : stride, j : j + columns : stride]


def _pad(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))


def _patches(x: Array, stride: int) -> Array:
    """`[n, h, w, c]` -> `[n, oh, ow, 9 c]`: the nine pixels that each output pixel sees."""
    padded = _pad(x)
    return jnp.concatenate([_shifted(padded, i, j, stride) for i in range(3) for j in range(3)], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x, kernel, stride):
    if _direct(x):
        padding = ((_PADDING, _PADDING),) * 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)
    return _patches(x, stride) @ kernel.reshape(-1, kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(g, kernel, stride, size):
    """Transpose of `_convolution` in its input, `g: [n, oh, ow, out]` -> `[n, *size, in]`."""
    back = kernel.swapaxes(2, 3)
    if stride == 1 and _direct(g):
        padding = ((_PADDING, _PADDING),) * 2
        return lax.conv_general_dilated(g, back[::-1, ::-1], (1, 1), padding, dimension_numbers=_LAYOUT)
    # dx[s a + r] = sum_i kernel[i] g[a + (r + 1 - i) / s] over the taps i for which that is a whole number: each
    # phase r is a matrix product over those taps alone, and no zero is multiplied.
    n, oh, ow, _ = g.shape
    padded = _pad(g)
    taps = [[(i, 1 + (r + _PADDING - i) // stride) for i in range(3) if (r + _PADDING - i) % stride == 0]
            for r in range(stride)]  # fmt: skip

    def phase(rows, columns):
        seen = [padded[:, y : y + oh, x : x + ow] for _, y in rows for _, x in columns]
        weights = [back[i, j] for i, _ in rows for j, _ in columns]
        return jnp.concatenate(seen, -1) @ jnp.concatenate(weights, 0)

    phases = jnp.stack([jnp.stack([phase(rows, columns) for columns in taps], 3) for rows in taps], 2)
    return phases.reshape(n, oh * stride, ow * stride, -1)[:, : size[0], : size[1]]


_BLOCK = 2**14  # pixels of a block of patches: nine times 64 channels of them fit a core's cache


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x, g, stride):
    """Transpose of `_convolution` in its kernel, `[3, 3, in, out]`: patches times gradients, in blocks of images."""
    n, c = g.shape[0], g.shape[-1]
    images = max(1, _BLOCK // (x.shape[1] * x.shape[2] * max(1, x.shape[3] // 16)))
    if jax.default_backend() != "cpu":
        images = n

    def block(x, g):
        patches = _patches(x, stride)
        return patches.reshape(-1, patches.shape[-1]).T @ g.reshape(-1, c)

    total = sum(block(x[i : i + images], g[i : i + images]) for i in range(0, n, images))
    return total.reshape(3, 3, x.shape[-1], c)


_convolution.defvjp(
    lambda x, kernel, stride: (_convolution(x, kernel, stride), (x, kernel)),
    lambda stride, saved, g: (
        _input_gradient(g, saved[1], stride, saved[0].shape[1:3]),
        _kernel_gradient(saved[0], g, stride),
    ),
)
_input_gradient.defvjp(
    lambda g, kernel, stride, size: (_input_gradient(g, kernel, stride, size), (g, kernel)),
    lambda stride, size, saved, t: (
        _convolution(t, saved[1], stride),
        _kernel_gradient(t, saved[0], stride),
    ),
)
_kernel_gradient.defvjp(
    lambda x, g, stride: (_kernel_gradient(x, g, stride), (x, g)),
    lambda stride, saved, t: (
        _input_gradient(saved[1], t, stride, saved[0].shape[1:3]),
        _convolution(saved[0], t, stride),
    ),
)


def max_pool(x: Array) -> Array:
    """2x2 max-pooling with stride 2, `[n, height, width, c]` -> `[n, height // 2, width // 2, c]`.

    The maximum of four strided slices: its backward pass is a third of that of a reshape and a tenth of that of
    `lax.reduce_window` on a CPU.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    a, b, c, d = (x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1))
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def set_norm(x: Array, scale: Array | None, shift: Array, reference: int | None, epsilon: float = 1e-5) -> Array:
    """Normalises each channel by the mean and variance of a set (batch normalisation without running statistics).

    Args:
      x: `[n, ..., c]`.
      scale: `[c]`, or None for no scale.
      shift: `[c]`.
      reference: the statistics are those of the first `reference` rows; None: of all rows.
      epsilon: added to the variance.

    Returns:
      `[n, ..., c]`. Mean and E[x^2] - mean^2 fold into one multiply-add a pixel.

    Source: Ioffe and Szegedy 2015, Batch Normalization, algorithm 1.
    """
    of = x if reference is None else x[:reference]
    axes = tuple(range(x.ndim - 1))
    mean = of.mean(axes)
    variance = jnp.maximum((of * of).mean(axes) - mean * mean, 0)
    factor = lax.rsqrt(variance + epsilon)
    if scale is not None:
        factor = factor * scale
    broadcast = (1,) * (x.ndim - 1) + (-1,)
    return x * factor.reshape(broadcast) + (shift - mean * factor).reshape(broadcast)

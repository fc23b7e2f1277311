"""Convolution, pooling and normalisation in the forms that are fast when differentiated more than once.

A convolution is bilinear, so its derivatives of every order are made of three operations: the convolution itself, its
gradient with respect to the input, and its gradient with respect to the kernel. Each is written once, in its fastest
form, and names the other two as its transposes, see `bilinear`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from metarun.models.bilinear import Bilinear
from metarun.system.shared_rows import sharing
from metarun.types import Array, Reference

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
    return _convolution(x, kernel, stride=stride)


def _direct(x: Array) -> bool:
    """Whether XLA's own convolution is the fastest form for maps of the size of `x`.

    It is on a CPU, but for very small maps; on an accelerator, kernels that differ between tasks would make it a grouped
    convolution. Matrix products over patches serve there.
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


def _convolution_form(x, kernel, *, stride):
    if _direct(x):
        # The CPU's kernels take channels by fours: for RGB, a channel of zeros is four times faster.
        missing = -x.shape[3] % 4 if x.shape[3] > 1 else 0
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
        padding = ((_PADDING, _PADDING),) * 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)
    return _patches(x, stride) @ kernel.reshape(-1, kernel.shape[-1])


def _input_gradient_form(g, kernel, *, stride, size):
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


_BLOCK = 2**18  # entries: the copies that a kernel gradient makes of a block of images then fit a core's cache
_NARROW = 16  # channels
_SUMMED = 2**12  # pixels: a longer sum is split, for an accelerator adds one up on a single one of its processors


def _by_patches(x, g, stride):
    # With the gradient on the left, the product is twice as fast on a CPU as with the patches there.
    product = g.reshape(-1, g.shape[3]).T @ _patches(x, stride).reshape(-1, 9 * x.shape[3])
    return product.reshape(-1, 3, 3, x.shape[3]).transpose(1, 2, 3, 0)


def _by_columns_and_rows(x, g, stride):
    """Stride 1: columns of taps from the input, rows of taps from the gradient, a third of the copies of patches."""
    c, out = x.shape[3], g.shape[3]
    padded = _pad(x)
    columns = jnp.concatenate([padded[:, :, j : j + g.shape[2]] for j in range(3)], -1)
    rows = jnp.concatenate([jnp.pad(g, ((0, 0), (i, 2 - i), (0, 0), (0, 0))) for i in range(3)], -1)
    product = rows.reshape(-1, 3 * out).T @ columns.reshape(-1, 3 * c)
    return product.reshape(3, out, 3, c).transpose(0, 2, 3, 1)


def _by_planes(x, g, stride):
    """Few channels: what each tap sees of each channel is a plane of its own, and so one row of the left factor."""
    rows, columns = g.shape[1:3]
    planes = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING)))
    seen = [
        planes[:, :, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(3)
        for j in range(3)
    ]
    return (jnp.stack(seen).reshape(9 * x.shape[3], -1) @ g.reshape(-1, g.shape[3])).reshape(3, 3, x.shape[3], -1)


def _kernel_gradient_choice(x, g, stride):
    """The fastest form, and the number of images of a block, which divides that of all."""
    n, pixels = x.shape[0], g.shape[1] * g.shape[2]
    if jax.default_backend() != "cpu":
        form, share = _by_patches, _SUMMED // pixels
    else:
        wide = _by_columns_and_rows if stride == 1 else _by_patches
        form, share = _by_planes if x.shape[3] < _NARROW else wide, _BLOCK // (9 * x.shape[3] * pixels)
    return form, max(d for d in range(1, n + 1) if n % d == 0 and d <= max(share, 1))


def _kernel_gradient_form(x, g, *, stride):
    """Transpose of `_convolution` in its kernel, `[3, 3, in, out]`."""
    mesh = sharing(x.shape[0])
    if mesh is None:
        return _sum_over_images(x, g, stride)
    axes = PartitionSpec(mesh.axis_names)  # each device sums up over its own images

    def of_devices(a):
        filled = jnp.pad(a, ((0, -a.shape[0] % mesh.size), (0, 0), (0, 0), (0, 0)))
        return lax.with_sharding_constraint(filled.reshape(mesh.size, -1, *a.shape[1:]), axes)

    sums = jax.vmap(lambda x, g: _sum_over_images(x, g, stride))(of_devices(x), of_devices(g))
    return lax.with_sharding_constraint(sums, axes).sum(0)


def _sum_over_images(x, g, stride):
    form, images = _kernel_gradient_choice(x, g, stride)
    if images == x.shape[0]:
        return form(x, g, stride)
    blocks = jax.tree.map(lambda a: a.reshape(-1, images, *a.shape[1:]), (x, g))
    dtype = jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
    of_block = lambda block: form(*block, stride).astype(dtype)
    if jax.default_backend() != "cpu":
        return jax.vmap(of_block)(blocks).sum(0).astype(x.dtype)
    zero = jnp.zeros((3, 3, x.shape[3], g.shape[3]), dtype)
    total, _ = lax.scan(lambda total, block: (total + of_block(block), None), zero, blocks)
    return total.astype(x.dtype)


_convolution = Bilinear("convolution_3x3", _convolution_form)
_input_gradient = Bilinear("convolution_3x3_input_gradient", _input_gradient_form)
_kernel_gradient = Bilinear("convolution_3x3_kernel_gradient", _kernel_gradient_form)
_convolution.has_transposes(
    lambda g, kernel, x, stride: _input_gradient(g, kernel, stride=stride, size=x.shape[1:3]),
    lambda g, x, kernel, stride: _kernel_gradient(x, g, stride=stride),
)
_input_gradient.has_transposes(
    lambda t, kernel, g, stride, size: _convolution(t, kernel, stride=stride),
    lambda t, g, kernel, stride, size: _kernel_gradient(t, g, stride=stride),
)
_kernel_gradient.has_transposes(
    lambda t, g, x, stride: _input_gradient(g, t, stride=stride, size=x.shape[1:3]),
    lambda t, x, g, stride: _convolution(x, t, stride=stride),
)


def max_pool(x: Array, factor: Array | None = None) -> Array:
    """2x2 max-pooling with stride 2: of each window, the pixel where `factor * x` is largest, the first of equals.

    An affine map commutes with it: max_pool(factor * x + offset) = factor * max_pool(x, factor) + offset, and the map
    then has a quarter of the pixels to go over.

    Args:
      x: `[n, height, width, c]`.
      factor: `[c]`; None: ones.

    Returns:
      `[n, height // 2, width // 2, c]`.
    """
    ranked = lax.stop_gradient(x if factor is None else x * factor.reshape(1, 1, 1, -1))
    a, b, c, d = _quarters(ranked)
    above = jnp.maximum(a, b) >= jnp.maximum(c, d)
    chosen = jnp.where(above, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    return _take(x, chosen.astype(jnp.int8))


def _windows(x: Array) -> Array:
    """`[n, h, w, c]` -> `[n, h // 2, 2, w // 2, 2, c]`."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)


def _quarters(x: Array) -> list[Array]:
    windows = _windows(x)
    return [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


# The pixel of each window that `chosen` names, and its transpose. Each is the other's derivative; neither reads the
# input of the pooling again, and neither scatters.
def _take_form(x, chosen):
    a, b, c, d = _quarters(x)
    return jnp.where(chosen < 2, jnp.where(chosen == 0, a, b), jnp.where(chosen == 2, c, d))


def _spread_form(g, chosen, *, size):
    n, h, w, c = g.shape
    place = jnp.arange(4, dtype=chosen.dtype).reshape(1, 1, 2, 1, 2, 1)
    windows = jnp.where(chosen[:, :, None, :, None] == place, g[:, :, None, :, None], jnp.zeros((), g.dtype))
    return jnp.pad(windows.reshape(n, 2 * h, 2 * w, c), ((0, 0), (0, size[0] - 2 * h), (0, size[1] - 2 * w), (0, 0)))


_take = Bilinear("pooled", _take_form)
_spread = Bilinear("unpooled", _spread_form)
_take.has_transposes(lambda g, chosen, x: _spread(g, chosen, size=x.shape[1:3]))
_spread.has_transposes(lambda t, chosen, g, size: _take(t, chosen))


def set_norm(
    x: Array, scale: Array | None, shift: Array, reference: Reference, epsilon: float = 1e-5
) -> tuple[Array, Array]:
    """Batch normalisation without running statistics, as the affine map `factor * x + offset`.

    Each channel gets the mean and variance of a set, then a learnt scale and shift; mean and E[x^2] - mean^2 fold into
    one multiply-add a pixel.

    Args:
      x: `[n, ..., c]`.
      scale: `[c]`, or None for no scale.
      shift: `[c]`.
      reference: whose statistics they are, see `Model.apply`.
      epsilon: added to the variance.

    Returns:
      factor and offset, `[c]`, of the type of `shift`, in which the statistics are computed as well.

    Source: Ioffe and Szegedy 2015, Batch Normalization, algorithm 1.
    """
    axes = tuple(range(x.ndim - 1))
    if reference is None or isinstance(reference, int):
        of = x[:reference].astype(shift.dtype)
        average = lambda values: values.mean(axes)
    else:
        of = x[: reference.size].astype(shift.dtype)
        marked = reference.astype(of.dtype)
        count = jnp.maximum(marked.sum(), 1) * (x[0].size // x.shape[-1])
        average = lambda values: marked @ values.sum(axes[1:]) / count
    mean = average(of)
    variance = jnp.maximum(average(of * of) - mean * mean, 0)
    factor = lax.rsqrt(variance + epsilon)
    if scale is not None:
        factor = factor * scale
    return factor, shift - mean * factor

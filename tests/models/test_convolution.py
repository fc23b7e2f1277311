"""The convolution against XLA's own, through three orders of differentiation, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from metarun.models import convolution
from metarun.models.convolution import convolve, max_pool, set_norm


def reference(x, kernel, stride):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def derivatives(fn, x, kernel):
    """A scalar of `fn`, and of its derivatives of orders 1, 2 and 3 in both arguments."""

    def order(n):
        if n == 0:
            return lambda args: jnp.mean(jnp.sin(fn(*args)))
        lower = order(n - 1)
        return lambda args: sum(jnp.sum(jnp.square(g)) for g in jax.grad(lower)(args))

    return [order(n)((x, kernel)) for n in range(4)]


FORMS = {
    "planes": (True, convolution._by_planes),
    "patches": (False, convolution._by_patches),
    "columns_and_rows": (True, convolution._by_columns_and_rows),
}


@pytest.mark.parametrize(
    "form, stride, channels",
    [("planes", 1, 2), ("planes", 2, 3), ("patches", 1, 3), ("patches", 2, 2), ("columns_and_rows", 1, 2)],
)
@pytest.mark.parametrize("height, width", [(7, 6), (1, 1)])
def test_equal_to_xla_up_to_third_order(form, stride, channels, height, width, monkeypatch):
    direct, kernel_gradient = FORMS[form]
    monkeypatch.setattr(convolution, "_direct", lambda x: direct)
    monkeypatch.setattr(convolution, "_kernel_gradient_choice", lambda x, g, stride: (kernel_gradient, 2))  # two blocks
    with jax.enable_x64(True):
        x_key, kernel_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, (4, height, width, channels))
        kernel = jax.random.normal(kernel_key, (3, 3, channels, 4))
        ours = derivatives(lambda x, k: convolve(x, k, stride), x, kernel)
        theirs = derivatives(lambda x, k: reference(x, k, stride), x, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def assert_equal_to_xla(size, channels, stride):
    with jax.enable_x64(True):
        x_key, kernel_key = jax.random.split(jax.random.key(1))
        x = jax.random.normal(x_key, (4, size, size, channels))
        kernel = jax.random.normal(kernel_key, (3, 3, channels, 5)) / 12
        ours = derivatives(lambda x, k: convolve(x, k, stride), x, kernel)
        theirs = derivatives(lambda x, k: reference(x, k, stride), x, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("size, channels, stride", [(20, 3, 1), (9, 16, 1), (8, 16, 2), (4, 16, 2)])
def test_the_forms_chosen_here_are_equal_to_xla(stride, size, channels, monkeypatch):
    monkeypatch.setattr(convolution, "_BLOCK", 10_000)  # several blocks
    assert_equal_to_xla(size, channels, stride)


@pytest.mark.parametrize("pixels", [1, 100, 10_000])  # an image a block; two or more; all in one
@pytest.mark.parametrize("size, channels, stride", [(9, 3, 1), (8, 16, 2), (4, 16, 1)])
def test_the_forms_chosen_on_an_accelerator_are_equal_to_xla(size, channels, stride, pixels, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(convolution, "_SUMMED", pixels)
    assert_equal_to_xla(size, channels, stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_close_to_float32_in_all_derivatives(stride):
    x = jax.random.normal(jax.random.key(2), (4, 9, 9, 16))
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 16, 16)) / 12

    def gradients(x, kernel):
        return jax.grad(lambda x, k: jnp.sum(jnp.square(convolve(x, k, stride).astype(jnp.float32))), (0, 1))(x, kernel)

    exact, rounded = gradients(x, kernel), gradients(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == jnp.bfloat16
        error = jnp.linalg.norm(b.astype(jnp.float32) - a) / jnp.linalg.norm(a)
        assert float(error) < 0.02  # a few times the spacing of bfloat16, 2^-8


def test_equal_under_vmap_scan_and_jit():
    x_key, kernel_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (3, 4, 8, 8, 2))
    kernels = jax.random.normal(kernel_key, (3, 3, 3, 2, 5))

    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.square(convolve(x, kernel, 2))))(kernel)

    loop = jnp.stack([gradient(a, b) for a, b in zip(x, kernels, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(x, kernels), loop, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lax.map(lambda pair: gradient(*pair), (x, kernels)), loop, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_forward_mode_is_equal_to_xla(stride):
    """The derivative of a gradient along a direction, the one that a second-order inner step needs."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(4), 4)
        at = jax.random.normal(keys[0], (2, 7, 6, 3)), jax.random.normal(keys[1], (3, 3, 3, 4))
        along = jax.random.normal(keys[2], (2, 7, 6, 3)), jax.random.normal(keys[3], (3, 3, 3, 4))

        def second_order(fn):
            gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(max_pool(fn(x, k, stride)))), (0, 1))
            return jax.jvp(gradient, at, along)

        ours, theirs = second_order(convolve), second_order(reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 3)])
def test_mapped_over_either_argument_or_both_its_derivatives_are_those_of_xla(axes):
    """The gradient of what is mapped, where the arguments without the axis sum up over it."""
    with jax.enable_x64(True):
        x_key, kernel_key, *others = jax.random.split(jax.random.key(5), 4)
        x = jax.random.normal(x_key, (3, 2, 6, 6, 2))
        x = x[0] if axes[0] is None else jnp.moveaxis(x, 0, axes[0])
        kernel = jax.random.normal(kernel_key, (3, 3, 3, 2, 4))
        kernel = kernel[0] if axes[1] is None else jnp.moveaxis(kernel, 0, axes[1])
        mapped = lambda fn: jax.vmap(lambda x, k: max_pool(fn(x, k, 1)), axes)
        ours, theirs = (derivatives(mapped(fn), x, kernel)[:3] for fn in (convolve, reference))
        twice = lambda fn: jax.vmap(jax.vmap(lambda x, k: fn(x, k, 2), (None, 0)), (0, None))
        x, kernels = jax.random.normal(others[0], (3, 2, 6, 6, 2)), jax.random.normal(others[1], (5, 3, 3, 2, 4))
        both, of_xla = (derivatives(twice(fn), x, kernels)[:3] for fn in (convolve, reference))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(both, of_xla, rtol=1e-9)


@pytest.mark.parametrize("height, width", [(8, 8), (7, 5)])
def test_max_pool_equals_reduce_window(height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), expected)


def test_max_pool_by_a_factor_commutes_with_the_affine_map():
    keys = jax.random.split(jax.random.key(0), 2)
    x, factor = jax.random.normal(keys[0], (2, 7, 6, 4)), jnp.array([2.0, -3.0, 0.5, -1.0])
    expected = lax.reduce_window(x * factor.reshape(1, 1, 1, 4), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(factor.reshape(1, 1, 1, 4) * max_pool(x, factor), expected)


@pytest.mark.parametrize("height, width", [(8, 8), (7, 5)])
def test_max_pool_is_differentiated_like_reduce_window(height, width):
    def reduce_window(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    with jax.enable_x64(True):
        x_key, kernel_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, (2, height, width, 3))
        kernel = jax.random.normal(kernel_key, (3, 3, 3, 3))
        ours = derivatives(lambda x, k: max_pool(reference(x, k, 1)), x, kernel)
        theirs = derivatives(lambda x, k: reduce_window(reference(x, k, 1)), x, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_max_pool_gives_the_gradient_of_equal_pixels_to_the_first():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], jnp.zeros((4, 4)).at[::2, ::2].set(1))


def normalised(x, scale, shift, reference):
    factor, offset = set_norm(x, scale, shift, reference)
    return x * factor.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1)


def test_set_norm_is_batch_normalisation():
    with jax.enable_x64(True):
        x = 3 + 2 * jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
        scale, shift = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, -1.0, 1.0])
        expected = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
        expected = expected * scale.reshape(1, 1, 1, 3) + shift.reshape(1, 1, 1, 3)
        np.testing.assert_allclose(normalised(x, scale, shift, None), expected, rtol=1e-9)
        check_grads(lambda x: normalised(x, scale, shift, None), (x,), order=2, modes=("rev",), rtol=1e-4)


def test_set_norm_by_a_reference_ignores_the_other_rows():
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    shift = jnp.zeros(3)
    changed = x.at[5].add(10.0)
    np.testing.assert_array_equal(normalised(x, None, shift, 4)[:5], normalised(changed, None, shift, 4)[:5])
    alone = normalised(x[:4], None, shift, None)
    np.testing.assert_allclose(normalised(x, None, shift, 4)[:4], alone, rtol=1e-5, atol=1e-6)

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
            return lambda args: jnp.sum(jnp.sin(fn(*args)))
        lower = order(n - 1)
        return lambda args: sum(jnp.sum(jnp.cos(g)) for g in jax.grad(lower)(args))

    return [order(n)((x, kernel)) for n in range(4)]


@pytest.mark.parametrize("form", ["direct", "patches"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height, width", [(7, 6), (8, 5), (4, 4), (2, 3), (1, 1)])
def test_equal_to_xla_up_to_third_order(form, stride, height, width, monkeypatch):
    monkeypatch.setattr(convolution, "_direct", lambda x: form == "direct")
    monkeypatch.setattr(convolution, "_BLOCK", 30)  # several blocks of images even here
    with jax.enable_x64(True):
        x_key, kernel_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, (3, height, width, 2))
        kernel = jax.random.normal(kernel_key, (3, 3, 2, 4))
        ours = derivatives(lambda x, k: convolve(x, k, stride), x, kernel)
        theirs = derivatives(lambda x, k: reference(x, k, stride), x, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_equal_under_vmap_scan_and_jit():
    x_key, kernel_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (3, 4, 8, 8, 2))
    kernels = jax.random.normal(kernel_key, (3, 3, 3, 2, 5))

    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.square(convolve(x, kernel, 2))))(kernel)

    loop = jnp.stack([gradient(a, b) for a, b in zip(x, kernels)])
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(x, kernels), loop, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lax.map(lambda pair: gradient(*pair), (x, kernels)), loop, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height, width", [(8, 8), (7, 5)])
def test_max_pool_equals_reduce_window(height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), expected)


def test_set_norm_is_batch_normalisation():
    with jax.enable_x64(True):
        x = 3 + 2 * jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
        scale, shift = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, -1.0, 1.0])
        expected = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
        expected = expected * scale.reshape(1, 1, 1, 3) + shift.reshape(1, 1, 1, 3)
        np.testing.assert_allclose(set_norm(x, scale, shift, None), expected, rtol=1e-9)
        check_grads(lambda x: set_norm(x, scale, shift, None), (x,), order=2, modes=("rev",), rtol=1e-4)


def test_set_norm_by_a_reference_ignores_the_other_rows():
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    shift = jnp.zeros(3)
    changed = x.at[5].add(10.0)
    np.testing.assert_array_equal(set_norm(x, None, shift, 4)[:5], set_norm(changed, None, shift, 4)[:5])
    alone = set_norm(x[:4], None, shift, None)
    np.testing.assert_allclose(set_norm(x, None, shift, 4)[:4], alone, rtol=1e-6)

"""ResNet-12 against its layers written with XLA's own operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from metarun.errors import ConfigError
from metarun.models.resnet12 import resnet12


def normalised(x, params, reference):
    of = x if reference is None else x[:reference]
    mean, variance = of.mean((0, 1, 2)), of.var((0, 1, 2))
    return (x - mean[None, None, None]) / jnp.sqrt(variance + 1e-5) * params["norm_scale"] + params["norm_shift"]


def convolved(x, params, reference):
    kernel = params["kernel"]
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return normalised(y, params, reference)


def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


def expected(params, x, reference):
    """The network as the paper draws it: pooling after the nonlinearity, no fused affine maps."""
    with jax.numpy_rank_promotion("allow"):
        for i in range(2):
            block, y = params[f"block{i}"], x
            y = leaky(convolved(y, block["conv0"], reference))
            y = leaky(convolved(y, block["conv1"], reference))
            y = convolved(y, block["conv2"], reference) + convolved(x, block["shortcut"], reference)
            x = lax.reduce_window(leaky(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu((x @ params["top"]["kernel"] + params["top"]["bias"]).mean((1, 2)))
        return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("reference", [None, 3])
def test_it_is_the_network_of_the_paper(reference):
    model = resnet12(num_outputs=4, filters=(3, 5), top=7)
    with jax.enable_x64(True):
        x = jax.random.uniform(jax.random.key(0), (6, 10, 9, 2), jnp.float64)
        params = jax.jit(model.init)(jax.random.key(1), x)
        # Scales and shifts other than ones and zeros, so that their places matter.
        keys = iter(jax.random.split(jax.random.key(2), 100))
        params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape, leaf.dtype), params)
        np.testing.assert_allclose(model.apply(params, x, reference), expected(params, x, reference), rtol=1e-9)
        ours, theirs = (
            jax.jit(jax.grad(lambda p, f=f: jnp.sin(f(p, x, reference)).sum()))(params) for f in (model.apply, expected)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), ours, theirs)


def test_derivatives_of_second_order():
    model = resnet12(num_outputs=2, filters=(3,))
    with jax.enable_x64(True):
        x = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1), jnp.float64)
        params = jax.jit(model.init)(jax.random.key(1), x)
        check_grads(
            lambda p: jnp.square(model.apply(p, x)).sum(),
            (params,),
            order=2,
            modes=("rev",),
            eps=1e-6,
            atol=1e-4,
            rtol=1e-4,
        )


def test_the_networks_of_the_papers_have_their_sizes():
    def count(params):
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def block(inputs, outputs):
        return 9 * inputs * outputs + 18 * outputs**2 + inputs * outputs + 4 * 2 * outputs

    x = jax.ShapeDtypeStruct((2, 84, 84, 3), jnp.float32)
    for settings, widths, features, more in [
        ({"top": 2048}, (3, 64, 96, 128, 256), (2, 2048), 256 * 2048 + 2048),
        ({"filters": (64, 160, 320, 640), "mean_pool": False}, (3, 64, 160, 320, 640), (2, 5, 5, 640), 0),
    ]:
        model = resnet12(num_outputs=None, **settings)
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        assert count(params) == sum(block(*pair) for pair in zip(widths, widths[1:], strict=False)) + more
        assert jax.eval_shape(model.apply, params, x).shape == features


def test_what_it_cannot_read_is_named():
    with pytest.raises(ConfigError, match=r"model.filters=\[2, 2\]: expected fewer blocks.*images of 3x8"):
        resnet12(num_outputs=2, filters=(2, 2)).init(jax.random.key(0), jnp.zeros((1, 3, 8, 1)))
    with pytest.raises(ConfigError, match=r"model=resnet12: expected model=mlp.*shape \[5\]"):
        resnet12(num_outputs=2).init(jax.random.key(0), jnp.zeros((1, 5)))
    with pytest.raises(ConfigError, match="model.filters=64"):
        resnet12(num_outputs=2, filters=64)

"""Conv-4's precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.models.conv4 import conv4
from metarun.system import backend


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_bfloat16_keeps_float32_parameters_and_is_close(downsample):
    x = jax.random.uniform(jax.random.key(0), (6, 16, 16, 1))
    exact, rounded = (
        conv4(num_outputs=3, filters=16, downsample=downsample, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    params = jax.jit(rounded.init)(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def loss(model, params):
        return jnp.mean(jnp.square(model.apply(params, x)))

    values, gradients = zip(
        *(jax.jit(jax.value_and_grad(lambda p, m=m: loss(m, p)))(params) for m in (exact, rounded)), strict=True
    )
    assert values[0] != values[1]
    np.testing.assert_allclose(values[1], values[0], rtol=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients[1])} == {jnp.dtype("float32")}
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]) for gradient in gradients]
    cosine = flat[0] @ flat[1] / (np.linalg.norm(flat[0]) * np.linalg.norm(flat[1]))
    assert cosine > 0.95


@pytest.mark.parametrize(
    "call", [backend.matmul_precision, lambda precision: conv4(num_outputs=2, precision=precision)]
)
def test_an_unknown_precision_is_named(call):
    with pytest.raises(ConfigError, match="precision=float16.*bfloat16"):
        call("float16")


def test_precision_is_that_of_the_products():
    for precision, algorithm in [("float32", "HIGHEST"), ("tensorfloat32", "HIGH")]:
        product = backend.at_precision(precision, jnp.matmul)
        assert f"Precision.{algorithm}," in str(jax.make_jaxpr(product)(jnp.ones((2, 2)), jnp.ones((2, 2))))
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize("halvings, side", [(0, 28), (2, 7), (4, 1)])
def test_the_first_blocks_halve(halvings, side):
    model = conv4(num_outputs=None, filters=2, downsample="max_pool", halvings=halvings)
    x = jax.ShapeDtypeStruct((3, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jax.eval_shape(model.apply, params, x).shape == (3, side, side, 2)


def test_halvings_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match="model.halvings=5: expected at most 4"):
        conv4(num_outputs=2, halvings=5)
    with pytest.raises(ConfigError, match="model.downsample=max_pool: expected stride: images of 3x8"):
        conv4(num_outputs=2, downsample="max_pool", halvings=2).init(jax.random.key(0), jnp.zeros((1, 3, 8, 1)))

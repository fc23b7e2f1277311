"""The network for signals, and what is said where a model and its inputs do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from metarun.errors import ConfigError
from metarun.models.conv1d import conv1d, convolve_signal
from metarun.models.conv4 import conv4
from metarun.models.resnet12 import resnet12


@pytest.mark.parametrize("length, stride", [(16, 1), (16, 2), (15, 2), (7, 3), (1, 2)])
def test_convolution_is_that_of_xla(length, stride):
    x = jax.random.normal(jax.random.key(0), (3, length, 2))
    kernel = jax.random.normal(jax.random.key(1), (5, 2, 4))
    exact = lax.conv_general_dilated(x, kernel, (stride,), ((2, 2),), dimension_numbers=("NHC", "HIO", "NHC"))
    found = convolve_signal(x, kernel, stride)
    assert found.shape == (3, -(-length // stride), 4)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean_pool, shape", [(True, (3, 4)), (False, (3, 4, 4))])
def test_features_are_those_of_the_last_block(mean_pool, shape):
    model = conv1d(num_outputs=None, filters=4, blocks=2, mean_pool=mean_pool)
    x = jax.ShapeDtypeStruct((3, 16, 2), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jax.eval_shape(model.apply, params, x).shape == shape
    classifier = conv1d(num_outputs=7, filters=4, blocks=2, mean_pool=mean_pool)
    assert jax.eval_shape(classifier.apply, jax.eval_shape(classifier.init, jax.random.key(0), x), x).shape == (3, 7)


def test_statistics_are_those_of_the_reference():
    x = jax.random.normal(jax.random.key(0), (6, 16, 2))
    for norm in ("batch", "layer", "none"):
        model = conv1d(num_outputs=3, filters=4, blocks=2, norm=norm)
        params = jax.jit(model.init)(jax.random.key(1), x)
        apply = jax.jit(model.apply, static_argnums=2)
        with_others = apply(params, x, 4)[:4]
        alone = apply(params, x[:4], None)
        np.testing.assert_allclose(with_others, alone, rtol=1e-4, atol=1e-4)
        own = apply(params, x, None)[:4]
        assert (np.abs(own - alone).max() > 1e-3) == (norm == "batch")


def test_it_is_differentiated_twice_and_mapped_over_parameters():
    model = conv1d(num_outputs=2, filters=3, blocks=2)
    x = jax.random.normal(jax.random.key(0), (4, 8, 1))
    params = jax.jit(model.init)(jax.random.key(1), x)

    def after_a_step(params, x):
        loss = lambda params: jnp.square(model.apply(params, x) - 1).mean()
        return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)))

    both = jnp.stack([x, 2 * x])
    mapped = jax.jit(jax.vmap(jax.grad(after_a_step), (None, 0)))(params, both)
    single = jax.jit(jax.grad(after_a_step))
    for number, one in enumerate(both):
        for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(single(params, one)), strict=True):
            assert np.isfinite(b).all() and np.abs(b).max() > 0
            np.testing.assert_allclose(a[number], b, rtol=1e-3, atol=1e-5)


def test_bfloat16_keeps_float32_parameters():
    model = conv1d(num_outputs=2, filters=3, blocks=2, precision="bfloat16")
    x = jax.ShapeDtypeStruct((4, 8, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(model.apply, params, x).dtype == jnp.float32


@pytest.mark.parametrize(
    "model, shape, message",
    [
        (conv4, (64,), "model=conv4: expected model=mlp, for inputs are rows of numbers"),
        (conv4, (64, 1), "model=conv4: expected model=conv1d, for inputs are signals"),
        (resnet12, (64, 1), "model=resnet12: expected model=conv1d"),
        (conv1d, (64,), r"model=conv1d: expected model=mlp.*each has shape \[64\]; or, .*x of shape \[n, 64, 1\]"),
        (conv1d, (8, 8, 1), "model=conv1d: expected model=conv4, for inputs are images"),
        (conv1d, (2, 8, 8, 1), "model=conv1d: expected model=mlp, for inputs are arrays"),
    ],
)
def test_the_model_that_fits_is_named(model, shape, message):
    with pytest.raises(ConfigError, match=message):
        model(num_outputs=2).init(jax.random.key(0), jnp.zeros((3, *shape)))


@pytest.mark.parametrize("setting", [{"kernel": 4}, {"filters": 0}, {"norm": "rows"}, {"stride": 0}, {"blocks": 1.5}])
def test_a_setting_that_cannot_be_used_is_named(setting):
    with pytest.raises(ConfigError, match=f"model.{next(iter(setting))}="):
        conv1d(num_outputs=2, **setting)

"""MAML's meta-gradient against finite differences, and its first-order form against its second."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metarun.errors import ConfigError
from metarun.few_shot.methods.maml import maml
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Split, Task


@partial(jax.jit, static_argnames=("way", "shot", "query_shot", "size"))
def image_task(key, way=3, shot=1, query_shot=2, size=8):
    """Classes are noisy copies of a pattern each."""
    pattern_key, support_key, query_key = jax.random.split(key, 3)
    patterns = jax.random.uniform(pattern_key, (way, size, size, 1))

    def split(key, n):
        y = jnp.tile(jnp.arange(way, dtype=jnp.int32), n)
        return Split(patterns[y] + 0.3 * jax.random.normal(key, (way * n, size, size, 1)), y)

    return Task(split(support_key, shot), split(query_key, query_shot))


def method(model=None, **options):
    return maml(model=model or conv4(num_outputs=3, filters=4), objective="classification", **options)


@pytest.mark.parametrize(
    "steps, downsample, statistics", [(1, "stride", "query"), (2, "stride", "support"), (2, "max_pool", "query")]
)
def test_meta_gradient_of_conv4_agrees_with_finite_differences(steps, downsample, statistics):
    with jax.enable_x64(True):
        learner = method(
            conv4(num_outputs=3, filters=4, downsample=downsample),
            inner_lr=0.4,
            inner_steps=steps,
            query_statistics=statistics,
        )
        task = image_task(jax.random.key(1), size=16)
        assert task.support.x.dtype == jnp.float64
        flat, unravel = ravel_pytree(jax.jit(learner.init)(jax.random.key(0), task))
        key = jax.random.key(2)
        loss = jax.jit(lambda flat: learner.loss(unravel(flat), task, key)[0])
        gradient = jax.grad(loss)(flat)
        directions = np.random.default_rng(0).normal(size=(5, flat.size))
        h = 1e-6
        for direction in directions / np.linalg.norm(directions, axis=1, keepdims=True):
            numeric = (loss(flat + h * direction) - loss(flat - h * direction)) / (2 * h)
            np.testing.assert_allclose(gradient @ direction, numeric, rtol=2e-5, atol=1e-8)


def test_first_order_has_the_same_loss_and_another_gradient():
    task = image_task(jax.random.key(1))
    found = {}
    for first_order in (False, True):
        learner = method(inner_lr=0.4, inner_steps=2, first_order=first_order)
        params = jax.jit(learner.init)(jax.random.key(0), task)
        loss = lambda params: learner.loss(params, task, jax.random.key(2))[0]  # noqa: B023
        found[first_order] = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-5)
    first, second = (ravel_pytree(found[order][1])[0] for order in (True, False))
    assert jnp.linalg.norm(first - second) > 0.05 * jnp.linalg.norm(second)


def test_first_order_is_the_query_gradient_at_the_adapted_parameters():
    task = image_task(jax.random.key(1))
    model = mlp(num_outputs=3, hidden=[8])
    learner = method(model, inner_lr=0.4, inner_steps=3, first_order=True)
    params = jax.jit(learner.init)(jax.random.key(0), task)
    meta_gradient = jax.grad(lambda p: learner.loss(p, task, jax.random.key(2))[0])(params)

    def query_loss(params):
        log_p = jax.nn.log_softmax(model.apply(params, task.query.x))
        return -jnp.mean(log_p[jnp.arange(6), task.query.y])

    fast_params = learner.adapt(params, task.support, jax.random.key(2)).state
    expected = jax.grad(query_loss)(fast_params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), meta_gradient, expected)


def test_inner_learning_rate_of_a_class_sum_is_way_times_larger_on_a_mean():
    task = image_task(jax.random.key(1))
    params = jax.jit(method().init)(jax.random.key(0), task)
    on_mean = method(inner_lr=0.3).adapt(params, task.support, None)
    on_class_sum = method(inner_lr=0.1, inner_reduction="class_sum").adapt(params, task.support, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), on_mean, on_class_sum)


def test_normalisation_is_adapted_only_if_asked():
    task = image_task(jax.random.key(1))
    params = jax.jit(method().init)(jax.random.key(0), task)
    everything = method().adapt(params, task.support, None).state
    frozen = method(inner_params="no_norm").adapt(params, task.support, None).state
    assert not np.array_equal(everything["conv0"]["norm_shift"], params["conv0"]["norm_shift"])
    np.testing.assert_array_equal(frozen["conv0"]["norm_shift"], params["conv0"]["norm_shift"])
    np.testing.assert_allclose(frozen["conv0"]["kernel"], everything["conv0"]["kernel"], rtol=1e-4, atol=1e-6)


def test_without_an_inner_step_it_fits_all_tasks_and_a_test_still_adapts():
    task = image_task(jax.random.key(1))
    pretrained, usual = method(inner_lr=0.4, inner_steps=0, eval_inner_steps=2), method(inner_lr=0.4, inner_steps=2)
    params = jax.jit(usual.init)(jax.random.key(0), task)
    cross_entropy = lambda params: (
        -jax.nn.log_softmax(conv4(num_outputs=3, filters=4).apply(params, task.query.x))[
            jnp.arange(task.query.y.size), task.query.y
        ].mean()
    )
    for found, expected in zip(
        jax.tree.leaves(jax.jit(jax.grad(lambda params: pretrained.loss(params, task, None)[0]))(params)),
        jax.tree.leaves(jax.jit(jax.grad(cross_entropy))(params)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    adapted = [
        ravel_pytree(jax.jit(learner.adapt)(params, task.support, None).state)[0] for learner in (pretrained, usual)
    ]
    np.testing.assert_array_equal(*adapted)
    assert not np.allclose(adapted[0], ravel_pytree(params)[0], atol=1e-3)


@pytest.mark.parametrize("inner_params, moving", [("head", {"head"}), ("body", {"conv0", "conv1", "conv2", "conv3"})])
def test_anil_adapts_the_head_alone_and_boil_all_but_the_head_and_both_train_everything(inner_params, moving):
    task = image_task(jax.random.key(1))
    learner = method(inner_params=inner_params, inner_steps=2)
    params = jax.jit(learner.init)(jax.random.key(0), task)
    fast_params = jax.jit(learner.adapt)(params, task.support, None).state
    for layer in params:
        for name, leaf in params[layer].items():
            assert np.array_equal(fast_params[layer][name], leaf) == (layer not in moving), f"{layer}/{name}"
    gradient = jax.jit(jax.grad(lambda params: learner.loss(params, task, None)[0]))(params)
    assert all(jnp.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("statistics", ["query", "support"])
def test_support_statistics_make_an_answer_independent_of_the_other_queries(statistics):
    task = image_task(jax.random.key(1))
    learner = method(query_statistics=statistics)
    params = jax.jit(learner.init)(jax.random.key(0), task)
    adapted = learner.adapt(params, task.support, None)
    together, alone = learner.predict(adapted, task.query.x)[:1], learner.predict(adapted, task.query.x[:1])
    assert np.allclose(together, alone, rtol=1e-4, atol=1e-5) == (statistics == "support")


@pytest.mark.parametrize(
    "key, value",
    [
        ("inner_lr", "abc"),
        ("inner_lr", -0.1),
        ("inner_steps", -1),
        ("eval_inner_steps", -1),
        ("first_order", 1),
        ("inner_params", "heads"),
        ("inner_reduction", "total"),
        ("query_statistics", "train"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{key: value})

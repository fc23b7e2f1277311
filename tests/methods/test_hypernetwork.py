"""Hypernetworks against a hand-written one, finite differences, and the symmetries that they claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metarun.errors import ConfigError
from metarun.few_shot.methods.hypernetwork import hypernetwork
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Split, Task

WAY = 3


def image_task(key, way=WAY, shot=2, query_shot=2, size=8):
    x_key, y_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (way * (shot + query_shot), size, size, 1))
    y = jax.random.permutation(y_key, jnp.tile(jnp.arange(way, dtype=jnp.int32), shot))
    num = way * shot
    return Task(Split(x[:num], y), Split(x[num:], jnp.tile(jnp.arange(way, dtype=jnp.int32), query_shot)))


def curve_task(key):
    x_key, y_key = jax.random.split(key)
    x, y = jax.random.normal(x_key, (9, 1)), jax.random.normal(y_key, (9, 1))
    return Task(Split(x[:5], y[:5]), Split(x[5:], y[5:]))


def learner(network="mlp", objective="classification", **options):
    num_outputs = WAY if objective == "classification" else 1
    make = {
        "conv4": lambda num_outputs: conv4(num_outputs=num_outputs, filters=4),
        "mlp": lambda num_outputs: mlp(num_outputs=num_outputs, hidden=[6]),
    }[network]
    options = {"embedding_size": 5, "code_size": 3} | options
    model, encoder = make(num_outputs), make(None)
    return hypernetwork(model=model, encoder=encoder, objective=objective, num_outputs=num_outputs, **options)


def anywhere(method, task):
    """Meta-parameters none of which is zero, as they are after some training."""
    flat, unravel = ravel_pytree(jax.jit(method.init)(jax.random.key(0), task))
    return unravel(flat + 0.3 * jax.random.normal(jax.random.key(9), flat.shape, flat.dtype))


def task_for(objective):
    return image_task(jax.random.key(1)) if objective == "classification" else curve_task(jax.random.key(1))


def answers(method, params, support, x):
    """Answers after `support`, as NumPy."""
    return np.asarray(jax.jit(lambda p, s, x: method.predict(method.adapt(p, s, None), x))(params, support, x))


SETTINGS = [("mlp", objective, g) for objective in ("classification", "regression") for g in ("all", "film", "head")]


@pytest.mark.parametrize("network, objective, generates", SETTINGS)
def test_order_of_the_support_set_changes_nothing(network, objective, generates):
    with jax.enable_x64(True):
        task = task_for(objective)
        method = learner(network, objective, generates=generates)
        params = anywhere(method, task)
        order = np.random.default_rng(0).permutation(len(task.support.y))
        reordered = jax.tree.map(lambda x: x[order], task.support)
        before, after = (answers(method, params, support, task.query.x) for support in (task.support, reordered))
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("generates", ["all", "head"])
def test_classes_numbered_anew_permute_the_answers(generates):
    with jax.enable_x64(True):
        task = image_task(jax.random.key(1))
        method = learner(generates=generates)
        params = anywhere(method, task)
        renumber = jnp.array([2, 0, 1], jnp.int32)
        before = answers(method, params, task.support, task.query.x)
        relabelled = Split(task.support.x, renumber[task.support.y])
        after = answers(method, params, relabelled, task.query.x)
        np.testing.assert_allclose(after[:, np.asarray(renumber)], before, rtol=1e-9, atol=1e-12)
        assert not np.allclose(after, before, rtol=1e-3)


@pytest.mark.parametrize("generates", ["all", "head"])
def test_before_it_sees_a_label_all_classes_have_the_same_last_layer(generates):
    task = image_task(jax.random.key(1))
    method = learner(generates=generates)
    params = anywhere(method, task)
    unadapted, adapted = (
        jax.tree.map(np.asarray, jax.jit(lambda p, s, see=see: see(p, s, None).state["head"])(params, task.support))
        for see in (method.unadapted, method.adapt)
    )
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(unadapted[name], unadapted[name][..., :1] * np.ones(WAY), rtol=1e-5, atol=1e-6)
        assert np.ptp(adapted[name], axis=-1).max() > 1e-3


def generated_names(method, task):
    """Names of the parameters that differ between two support sets."""
    params = anywhere(method, task)
    other = Split(1 - task.support.x**2, task.support.y)
    adapt = jax.jit(lambda params, support: method.adapt(params, support, None).state)
    states = [adapt(params, support) for support in (task.support, other)]
    leaves = (jax.tree_util.tree_leaves_with_path(state) for state in states)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), (_, b) in zip(*leaves, strict=True)
        if not np.array_equal(a, b)
    }


def test_what_is_generated_is_what_was_asked_for():
    task = image_task(jax.random.key(1))
    norms = {f"conv{i}/norm_{part}" for i in range(4) for part in ("scale", "shift")}
    head = {"head/kernel", "head/bias"}
    everything = norms | head | {f"conv{i}/kernel" for i in range(4)}
    assert generated_names(learner("conv4", generates="film"), task) == norms
    assert generated_names(learner("conv4", generates="all"), task) == everything
    curve = curve_task(jax.random.key(1))
    assert generated_names(learner("mlp", "regression", generates="film"), curve) == {"dense0/bias"}
    assert generated_names(learner("mlp", "regression", generates="head"), curve) == head


@pytest.mark.parametrize("network, objective, generates", [*SETTINGS, ("conv4", "classification", "all")])
def test_meta_gradient_agrees_with_finite_differences(network, objective, generates):
    with jax.enable_x64(True):
        task = task_for(objective)
        method = learner(network, objective, generates=generates)
        flat, unravel = ravel_pytree(anywhere(method, task))
        loss = jax.jit(lambda flat: method.loss(unravel(flat), task, None)[0])
        gradient = jax.jit(jax.grad(loss))(flat)
        assert all(np.abs(leaf).max() > 0 for leaf in unravel(gradient)["generator"].values())
        h = 1e-6
        directions = np.random.default_rng(0).normal(size=(3, flat.size))
        for direction in directions / np.linalg.norm(directions, axis=1, keepdims=True):
            numeric = (loss(flat + h * direction) - loss(flat - h * direction)) / (2 * h)
            np.testing.assert_allclose(gradient @ direction, numeric, rtol=1e-4, atol=1e-8)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def relu(x):
    return np.maximum(x, 0)


def two_layers(x, params):
    return dense(relu(dense(x, params["dense0"])), params["head"])


def test_regression_equals_one_written_by_hand():
    with jax.enable_x64(True):
        task = curve_task(jax.random.key(1))
        method = learner("mlp", "regression", generates="all")
        params = anywhere(method, task)
        ours = answers(method, params, task.support, task.query.x)
    p = jax.tree.map(np.asarray, params)
    x, y, query = (np.asarray(a) for a in (*task.support[:2], task.query.x))
    features = relu(dense(x, p["encoder"]["dense0"]))
    pooled = relu(two_layers(np.concatenate([features, y], 1), p["phi"])).mean(0)
    code = two_layers(pooled, p["rho"])
    theta = {
        name: p["learnt"][name] + (code @ u).reshape(p["learnt"][name].shape) for name, u in p["generator"].items()
    }
    assert sum(leaf.size for leaf in theta.values()) == 6 + 6 + 6 + 1
    hidden = relu(query @ theta["dense0.kernel"] + theta["dense0.bias"])
    np.testing.assert_allclose(ours, hidden @ theta["head.kernel"] + theta["head.bias"], rtol=1e-9)


def test_classification_equals_one_written_by_hand():
    with jax.enable_x64(True):
        task = image_task(jax.random.key(1), size=2)
        method = learner("mlp", generates="head")
        params = anywhere(method, task)
        ours = answers(method, params, task.support, task.query.x)
    p = jax.tree.map(np.asarray, params)
    x, query = (np.asarray(a).reshape(-1, 4) for a in (task.support.x, task.query.x))
    embeddings = two_layers(relu(dense(x, p["encoder"]["dense0"])), p["phi"])
    features = relu(query @ p["learnt"]["dense0.kernel"] + p["learnt"]["dense0.bias"])
    for k in range(WAY):
        mean = embeddings[np.asarray(task.support.y) == k].mean(0)
        output = features @ (mean @ p["generator"]["head.kernel"]) + mean @ p["generator"]["head.bias"]
        np.testing.assert_allclose(ours[:, k], output, rtol=1e-9)


@pytest.mark.parametrize("key, value", [("generates", "body"), ("embedding_size", 0), ("code_size", 2.5)])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        learner(**{key: value})


def test_a_model_without_scale_shift_and_bias_leaves_film_nothing():
    task = image_task(jax.random.key(1))
    bare = mlp(num_outputs=WAY, hidden=[])
    method = hypernetwork(model=bare, encoder=bare, objective="classification", num_outputs=WAY, generates="film")
    with pytest.raises(ConfigError, match="method.generates=film"):
        jax.jit(method.init)(jax.random.key(0), task)


@pytest.mark.parametrize("statistics", ["support", "query"])
def test_the_embedding_s_loss_is_that_of_nearest_class_means_of_the_features(statistics):
    task = image_task(jax.random.key(1))
    plain, weighted = (learner("conv4", query_statistics=statistics, embedding_loss=w) for w in (0.0, 0.5))
    params = anywhere(plain, task)
    loss, metrics = jax.jit(weighted.loss)(params, task, jax.random.key(2))
    without, _ = jax.jit(plain.loss)(params, task, jax.random.key(2))
    np.testing.assert_allclose(metrics["loss"], without, rtol=1e-5)
    np.testing.assert_allclose(loss, without + 0.5 * metrics["embedding_loss"], rtol=1e-5)

    encoder = conv4(num_outputs=None, filters=4)
    flat = lambda x: np.asarray(x).reshape(len(x), -1)
    support = flat(jax.jit(encoder.apply)(params["encoder"], task.support.x))
    both = jnp.concatenate([task.support.x, task.query.x])
    if statistics == "support":
        query = flat(jax.jit(lambda x: encoder.apply(params["encoder"], x, len(support)))(both))[len(support) :]
    else:
        query = flat(jax.jit(encoder.apply)(params["encoder"], task.query.x))
    means = np.stack([support[np.asarray(task.support.y) == k].mean(0) for k in range(WAY)])
    logits = -((query[:, None] - means[None]) ** 2).sum(-1)
    log_probs = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    expected = -log_probs[np.arange(len(query)), np.asarray(task.query.y)].mean()
    np.testing.assert_allclose(metrics["embedding_loss"], expected, rtol=1e-4)

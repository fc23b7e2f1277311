"""Pre-training and its heads against formulas written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.few_shot.methods.pretrain import pretrain
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Split, Task

WAY, CLASSES, SIZE = 3, 7, 4


def points(labels):
    rng = np.random.RandomState(0)
    y = jnp.asarray(labels, jnp.int32)
    return Task(Split(jnp.asarray(rng.normal(size=(6, SIZE))), y), Split(jnp.asarray(rng.normal(size=(6, SIZE))), y))


def learner(encoder=None, **options):
    encoder = encoder or mlp(num_outputs=None, hidden=[5])
    options = {"objective": "classification", "num_outputs": WAY, "num_train_classes": CLASSES} | options
    return pretrain(encoder=encoder, **options)


def features_of(params, x):
    layer = jax.tree.map(np.asarray, params["encoder"]["dense0"])
    return np.maximum(np.asarray(x) @ layer["kernel"] + layer["bias"], 0)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cosines(features, kernel):
    length = np.maximum(np.linalg.norm(features, axis=1), 1e-30)  # the cosine with a vector of zeros is 0
    return features @ kernel / length[:, None] / np.linalg.norm(kernel, axis=0)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_loss_is_the_cross_entropy_of_all_classes_over_all_images(head):
    with jax.enable_x64(True):
        draw = points([6, 0, 3, 3, 0, 6])
        method = learner(head=head)
        params = jax.jit(method.init)(jax.random.key(0), draw)
        rng = np.random.RandomState(1)
        params["head"] = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params["head"])
        loss, metrics = method.loss(params, draw, None)
    x, y = (np.concatenate([np.asarray(part[i]) for part in draw]) for i in (0, 1))
    features, kernel = features_of(params, x), np.asarray(params["head"]["kernel"])
    assert kernel.shape == (5, CLASSES)
    if head == "linear":
        outputs = features @ kernel + np.asarray(params["head"]["bias"])
    else:
        outputs = 2 * cosines(features, kernel)
    np.testing.assert_allclose(loss, -np.log(softmax(outputs)[np.arange(12), y]).mean(), rtol=1e-9)
    np.testing.assert_allclose(metrics["classes/accuracy"], (outputs.argmax(1) == y).mean())


def test_a_task_descends_its_support_loss_in_the_head_and_keeps_the_encoder():
    with jax.enable_x64(True):
        task = points([2, 0, 1, 1, 0, 2])
        method = learner(inner_lr=0.2, eval_inner_steps=15)
        params = jax.jit(method.init)(jax.random.key(0), task)
        adapted = method.adapt(params, task.support, jax.random.key(1))
        outputs = method.predict(adapted, task.query.x)
    jax.tree.map(np.testing.assert_array_equal, adapted.state[0], params["encoder"])
    features, y = features_of(params, task.support.x), np.asarray(task.support.y)
    kernel, bias = np.zeros((5, WAY)), np.zeros(WAY)
    for _ in range(15):
        error = (softmax(features @ kernel + bias) - np.eye(WAY)[y]) / len(y)
        kernel, bias = kernel - 0.2 * features.T @ error, bias - 0.2 * error.sum(0)
    np.testing.assert_allclose(outputs, features_of(params, task.query.x) @ kernel + bias, rtol=1e-9)


def test_a_cosine_head_begins_at_random_and_descends():
    with jax.enable_x64(True):
        task = points([2, 0, 1, 1, 0, 2])
        found = {}
        for steps in (0, 1):
            method = learner(head="cosine", inner_lr=0.2, eval_inner_steps=steps)
            params = jax.jit(method.init)(jax.random.key(0), task)
            found[steps] = method.adapt(params, task.support, jax.random.key(1)).state[1]["kernel"]
        start = method.unadapted(params, task.support, jax.random.key(1)).state[1]["kernel"]
    np.testing.assert_array_equal(start, found[0])
    features, y = features_of(params, task.support.x), np.asarray(task.support.y)

    def loss(kernel):
        return -np.log(softmax(2 * cosines(features, kernel))[np.arange(6), y]).mean()

    kernel, gradient, h = np.asarray(start), np.zeros((5, WAY)), 1e-6
    for place in np.ndindex(5, WAY):
        step = np.zeros((5, WAY))
        step[place] = h
        gradient[place] = (loss(kernel + step) - loss(kernel - step)) / (2 * h)
    np.testing.assert_allclose(found[1], kernel - 0.2 * gradient, rtol=1e-6, atol=1e-9)


def test_queries_are_normalised_as_the_support_set_was():
    rng = np.random.RandomState(0)
    support = Split(jnp.asarray(rng.uniform(size=(6, 8, 8, 1)), jnp.float32), jnp.array([2, 0, 1, 1, 0, 2], jnp.int32))
    method = learner(conv4(num_outputs=None, filters=4))
    params = jax.jit(method.init)(jax.random.key(0), Task(support, support))
    adapted = method.adapt(params, support, jax.random.key(1))
    together = method.predict(adapted, support.x)
    alone = jnp.concatenate([method.predict(adapted, support.x[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "key, value", [("head", "mlp"), ("inner_lr", -1), ("eval_inner_steps", -1), ("query_statistics", "train")]
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        learner(**{key: value})


def test_regression_has_no_classes_to_train_on():
    with pytest.raises(ConfigError, match="method=pretrain"):
        learner(objective="regression")

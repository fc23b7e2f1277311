"""Prototypical networks against class means and distances worked out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import reordered_support, vector_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.protonet import protonet
from metarun.models.mlp import mlp
from metarun.types import Model

LINEAR = Model(
    init=lambda key, x: {"kernel": jax.random.normal(key, (x.shape[1], 3))},
    apply=lambda params, x, reference=None: x @ params["kernel"],
)


def method(encoder=LINEAR, **options):
    return protonet(encoder=encoder, objective="classification", num_outputs=3, **options)


def numpy_prototypes(params, task):
    features = np.asarray(task.support.x) @ np.asarray(params["kernel"])
    y = np.asarray(task.support.y)
    return np.stack([features[y == k].mean(0) for k in range(3)])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_probabilities_and_loss_are_those_of_the_distances_to_the_class_means(distance):
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        learner = method(distance=distance)
        params = jax.jit(learner.init)(jax.random.key(1), task)
        queries = np.asarray(task.query.x) @ np.asarray(params["kernel"])
        distances = np.empty((9, 3))
        for i, query in enumerate(queries):
            for k, prototype in enumerate(numpy_prototypes(params, task)):
                if distance == "euclidean":
                    distances[i, k] = sum((query - prototype) ** 2)
                else:
                    distances[i, k] = 1 - query @ prototype / np.linalg.norm(query) / np.linalg.norm(prototype)
        p = np.exp(-distances) / np.exp(-distances).sum(1, keepdims=True)
        outputs = learner.predict(learner.adapt(params, task.support, None), task.query.x)
        np.testing.assert_allclose(jax.nn.softmax(outputs), p, rtol=1e-9)
        expected = -np.mean(np.log(p[np.arange(9), np.asarray(task.query.y)]))
        np.testing.assert_allclose(learner.loss(params, task, None)[0], expected, rtol=1e-9)


def test_is_a_linear_classifier_of_the_embedding():
    """w_k = 2 c_k and b_k = -|c_k|^2 (section 2.4 of the paper)."""
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        params = jax.jit(method().init)(jax.random.key(1), task)
        prototypes = numpy_prototypes(params, task)
        weights = np.asarray(params["kernel"]) @ (2 * prototypes.T)
        expected = np.asarray(task.query.x) @ weights - np.square(prototypes).sum(1)
        outputs = method().predict(method().adapt(params, task.support, None), task.query.x)
        np.testing.assert_allclose(outputs, expected, rtol=1e-9)


def test_the_order_of_the_support_set_does_not_matter():
    task = vector_task(jax.random.key(0))
    learner = method(mlp(num_outputs=None, hidden=[8]))
    params = jax.jit(learner.init)(jax.random.key(1), task)
    reordered = reordered_support(task, jnp.array([4, 0, 5, 1, 3, 2]))
    outputs, expected = (
        learner.predict(learner.adapt(params, part.support, None), task.query.x) for part in (reordered, task)
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_trains_on_more_classes_than_it_is_tested_on():
    learner = method(mlp(num_outputs=None, hidden=[8]), train_way=5)
    wide, narrow = vector_task(jax.random.key(0), way=5), vector_task(jax.random.key(0), way=3)
    params = jax.jit(learner.init)(jax.random.key(1), wide)
    assert np.isfinite(learner.loss(params, wide, None)[0])
    assert learner.predict(learner.adapt(params, narrow.support, None), narrow.query.x).shape == (9, 3)


def test_a_setting_that_cannot_be_used_is_named():
    with pytest.raises(ConfigError, match="method.distance=manhattan"):
        method(distance="manhattan")
    with pytest.raises(ConfigError, match="method=protonet"):
        protonet(encoder=LINEAR, objective="regression", num_outputs=1)

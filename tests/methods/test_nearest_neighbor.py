"""Nearest neighbour against a search written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import image_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.nearest_neighbor import nearest_neighbor
from metarun.types import Split


def method(**options):
    return nearest_neighbor(objective="classification", num_outputs=3, **options)


def answers(learner, task):
    return learner.predict(learner.adapt({}, task.support, None), task.query.x)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_query_has_the_class_of_its_nearest_example(distance):
    task = image_task(jax.random.key(0), shot=3, query_shot=10, noise=2.0)
    support, query = (np.asarray(part.x, np.float64).reshape(-1, 64) for part in task)
    expected = []
    for x in query:
        if distance == "euclidean":
            distances = [np.linalg.norm(x - example) for example in support]
        else:
            distances = [-x @ example / np.linalg.norm(x) / np.linalg.norm(example) for example in support]
        expected.append(int(task.support.y[np.argmin(distances)]))
    assert 5 < sum(np.array(expected) == np.asarray(task.query.y)) < 30  # neither chance nor trivial
    np.testing.assert_array_equal(answers(method(distance=distance), task).argmax(1), expected)


def test_a_class_is_as_near_as_its_nearest_example():
    """By hand: the query 0 lies between -1 of class 0 and 2, 3 of class 1; the mean of class 2 is nearer than all."""
    support = Split(jnp.array([[-1.0], [9.0], [2.0], [3.0], [-5.0], [5.0]]), jnp.array([0, 0, 1, 1, 2, 2]))
    learner = method()
    outputs = learner.predict(learner.adapt({}, support, None), jnp.zeros((1, 1)))
    np.testing.assert_allclose(outputs, [[-1, -4, -25]])


def test_learns_nothing():
    learner = method()
    task = image_task(jax.random.key(0))
    assert learner.trains_on == "nothing" and jax.jit(learner.init)(jax.random.key(0), task) == {}
    assert jax.grad(lambda params: learner.loss(params, task, None)[0])({}) == {}


def test_without_labels_no_class_is_preferred():
    learner = method()
    task = image_task(jax.random.key(0))
    outputs = learner.predict(learner.unadapted({}, task.support, None), task.query.x)
    np.testing.assert_array_equal(outputs, jnp.broadcast_to(outputs[:, :1], outputs.shape))


def test_a_setting_that_cannot_be_used_is_named():
    with pytest.raises(ConfigError, match="method.distance=manhattan"):
        method(distance="manhattan")

"""SNAIL as a method: what its answers depend on, and the settings that it refuses."""

import jax
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.snail import snail
from metarun.models.mlp import mlp


def method(objective="classification", num_outputs=3, shot=2, **options):
    settings = {"filters": 4, "embedding": 5, "attention": [[4, 3], [5, 4]], **options}
    encoder = mlp(num_outputs=None, hidden=[6])
    return snail(encoder=encoder, objective=objective, num_outputs=num_outputs, shot=shot, **settings)


def test_a_query_is_answered_from_every_support_label_and_from_no_other_query():
    learner, task = method(), point_task(jax.random.key(0))
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)

    @jax.jit
    def answers(y, x):
        return learner.predict(learner.adapt(meta_params, task.support._replace(y=y), None), x)

    before = answers(task.support.y, task.query.x)
    for t in range(6):
        after = answers(task.support.y.at[t].set((task.support.y[t] + 1) % 3), task.query.x)
        assert np.all(np.any(before != after, 1))
    moved = answers(task.support.y, task.query.x.at[2].add(1.0))
    np.testing.assert_array_equal(np.any(before != moved, 1), np.arange(6) == 2)


def test_convolutions_see_the_longer_of_training_and_test():
    task = point_task(jax.random.key(0))

    def layers(**sizes):
        shapes = jax.eval_shape(method(**sizes).init, jax.random.key(1), task)
        return [name for name in shapes["sequence"] if "dilation" in name]

    assert len(layers(shot=2)) == len(layers(shot=1, train_shot=2)) == 3  # T = 7
    assert len(layers(shot=1)) == 2  # T = 4


def test_a_regression_has_a_loss_and_a_gradient():
    task = curve_task(jax.random.key(0))
    learner = method("regression", 1, shot=3)
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, task, jax.random.key(2))[0]))(meta_params)
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in jax.tree.leaves(gradient["embedding"]))


@pytest.mark.parametrize(
    "key, value",
    [
        ("filters", 0),
        ("attention", []),
        ("attention", "64"),
        ("attention", [[64, 32], [64]]),
        ("embedding", "big"),
        ("query_statistics", "train"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError) as refused:
        method(**{key: value})
    assert str(refused.value).startswith(f"method.{key}={value}")

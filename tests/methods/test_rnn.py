"""Recurrent learners: each support example is read once, with its label, and each query is a step of its own."""

import jax
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.rnn import rnn
from metarun.models.mlp import mlp


def method(objective="classification", num_outputs=3, **options):
    encoder = mlp(num_outputs=None, hidden=[6])
    settings = {"hidden": 8, "embedding": 5, **options}
    return rnn(encoder=encoder, objective=objective, num_outputs=num_outputs, **settings)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_labels_move_no_output_before_their_own_position(cell):
    learner, task = method(cell=cell), point_task(jax.random.key(0))
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)

    @jax.jit
    def read(y):
        adapted = learner.adapt(meta_params, task.support._replace(y=y), None)
        return adapted.state.memory.read.outputs, learner.predict(adapted, task.query.x)

    outputs, answers = read(task.support.y)
    for t in range(6):
        new_outputs, new_answers = read(task.support.y.at[t].set((task.support.y[t] + 1) % 3))
        np.testing.assert_array_equal(np.any(outputs != new_outputs, 1), np.arange(6) >= t)
        assert np.all(np.any(answers != new_answers, 1))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_regression_has_a_loss_and_a_gradient(cell):
    task, learner = curve_task(jax.random.key(0)), method("regression", 1, cell=cell)
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, task, jax.random.key(2))[0]))(meta_params)
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in jax.tree.leaves(gradient["embedding"]))


@pytest.mark.parametrize("key, value", [("cell", "rnn"), ("hidden", 0), ("embedding", 1.5)])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{key: value})

"""The label-offset protocol, and the loss over all positions."""

import jax
import numpy as np
import pytest
from point_task import curve_task, point_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.mann import mann
from metarun.models.mlp import mlp


def method(objective="classification", num_outputs=3, **options):
    encoder = mlp(num_outputs=None, hidden=[6])
    settings = {"hidden": 8, "slots": 6, "width": 4, "heads": 2, "embedding": 5, **options}
    return mann(encoder=encoder, objective=objective, num_outputs=num_outputs, **settings)


def test_a_label_enters_one_step_after_its_input():
    """y_t moves the outputs from t + 1 on, and the last one those of the queries; x_t moves them from t on."""
    learner, task = method(), point_task(jax.random.key(0))
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)

    @jax.jit
    def read(support):
        adapted = learner.adapt(meta_params, support, None)
        return adapted.state.memory.read.outputs, learner.predict(adapted, task.query.x)

    outputs, answers = read(task.support)
    for t in range(6):
        other = task.support.y.at[t].set((task.support.y[t] + 1) % 3)
        new_outputs, new_answers = read(task.support._replace(y=other))
        np.testing.assert_array_equal(np.any(outputs != new_outputs, 1), np.arange(6) > t)
        assert np.all(np.any(answers != new_answers, 1))
        new_outputs, _ = read(task.support._replace(x=task.support.x.at[t].add(1.0)))
        np.testing.assert_array_equal(np.any(outputs != new_outputs, 1), np.arange(6) >= t)


def test_jacobian_in_the_labels_is_strictly_causal():
    task, learner = curve_task(jax.random.key(0)), method("regression", 1)
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)

    def outputs(y):
        return learner.adapt(meta_params, task.support._replace(y=y), None).state.memory.read.outputs[:, 0]

    jacobian = jax.jit(jax.jacobian(outputs))(task.support.y)[:, :, 0]
    np.testing.assert_array_equal(jacobian != 0, np.tril(np.ones((3, 3), bool), -1))


@pytest.mark.parametrize("support_loss", [True, False])
def test_loss_is_the_mean_over_the_positions_that_count(support_loss):
    """With each query as the last of a sequence of its own, and the sequences' losses averaged."""
    learner, task = method(support_loss=support_loss), point_task(jax.random.key(0))
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)
    adapted = jax.jit(learner.adapt)(meta_params, task.support, None)
    answers = jax.jit(learner.predict)(adapted, task.query.x)

    def losses(outputs, y):
        outputs = np.asarray(outputs)
        return [np.log(np.exp(o).sum()) - o[label] for o, label in zip(outputs, np.asarray(y), strict=True)]

    seen = losses(adapted.state.memory.read.outputs, task.support.y)
    asked = losses(answers, task.query.y)
    expected = np.mean([np.mean([*seen, last]) for last in asked]) if support_loss else np.mean(asked)
    loss, metrics = jax.jit(learner.loss)(meta_params, task, jax.random.key(2))
    np.testing.assert_allclose([loss, metrics["loss"]], expected, rtol=1e-5)
    right = np.argmax(answers, 1) == np.asarray(task.query.y)
    np.testing.assert_allclose(metrics["query/accuracy"], np.mean(right), rtol=1e-6)


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden", 0),
        ("slots", 0),
        ("heads", 7),
        ("width", 1.5),
        ("usage_decay", 1.01),
        ("strength", 0),
        ("support_loss", "yes"),
        ("embedding", 0),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        method(**{key: value})

"""R2D2's ridge regression against NumPy's least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from small_tasks import reordered_support, vector_task

from metarun.errors import ConfigError
from metarun.few_shot.methods.r2d2 import r2d2, ridge_regression
from metarun.models.mlp import mlp
from metarun.types import Model, Split, Task

IDENTITY = Model(init=lambda key, x: {}, apply=lambda params, x, reference=None: x)


def method(encoder=IDENTITY, objective="classification", num_outputs=3, **options):
    return r2d2(encoder=encoder, objective=objective, num_outputs=num_outputs, **options)


def numpy_ridge(features, targets, penalty):
    """Least squares of the rows of Z beside targets, and of sqrt(penalty) I beside zeros."""
    size = features.shape[1]
    rows = np.concatenate([features, np.sqrt(penalty) * np.eye(size)])
    return np.linalg.lstsq(rows, np.concatenate([targets, np.zeros((size, targets.shape[1]))]), rcond=None)[0]


@pytest.mark.parametrize("n, size", [(4, 9), (9, 4)])
@pytest.mark.parametrize("penalty", [1e-3, 0.5])
def test_weights_are_those_of_least_squares_with_a_penalty(n, size, penalty):
    random = np.random.default_rng(0)
    features, targets = random.normal(size=(n, size)), random.normal(size=(n, 3))
    expected = numpy_ridge(features, targets, penalty)
    normal_equations = np.linalg.solve(features.T @ features + penalty * np.eye(size), features.T @ targets)
    np.testing.assert_allclose(expected, normal_equations, rtol=1e-7)
    with jax.enable_x64(True):
        found = ridge_regression(jnp.array(features), jnp.array(targets), jnp.array(penalty))
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_outputs_are_the_scaled_and_shifted_regression_on_labels():
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        learner = method(init_penalty=0.3, init_scale=4.0)
        params = {**jax.jit(learner.init)(jax.random.key(1), task), "bias": jnp.array(0.7)}
        support, query = (np.concatenate([part.x, np.ones((len(part.x), 1))], 1) for part in task)
        weights = numpy_ridge(support, np.eye(3)[np.asarray(task.support.y)], 0.3)
        outputs = learner.predict(learner.adapt(params, task.support, None), task.query.x)
        np.testing.assert_allclose(outputs, 4 * query @ weights + 0.7, rtol=1e-7)


def test_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        learner = method(mlp(num_outputs=None, hidden=[5]))
        params = jax.jit(learner.init)(jax.random.key(1), task)
        check_grads(lambda p: learner.loss(p, task, None)[0], (params,), order=1, modes=["rev"])
        gradient = jax.grad(lambda p: learner.loss(p, task, None)[0])(params)
        assert abs(gradient["log_penalty"]) > 1e-4 and abs(gradient["log_scale"]) > 1e-4


def test_a_linear_function_is_regressed_exactly():
    """y = 2 x - 1 with hardly a penalty: the constant feature carries the -1."""
    with jax.enable_x64(True):
        x = jnp.array([[-1.0], [0.5], [3.0]])
        task = Task(Split(x, 2 * x - 1), Split(10 * x, 20 * x - 1))
        learner = method(objective="regression", num_outputs=1, init_penalty=1e-10)
        params = jax.jit(learner.init)(jax.random.key(0), task)
        outputs = learner.predict(learner.adapt(params, task.support, None), task.query.x)
        np.testing.assert_allclose(outputs, task.query.y, rtol=1e-6)
        assert learner.loss(params, task, None)[0] < 1e-10


def test_the_order_of_the_support_set_does_not_matter():
    with jax.enable_x64(True):
        task = vector_task(jax.random.key(0))
        params = jax.jit(method().init)(jax.random.key(1), task)
        reordered = reordered_support(task, jnp.array([4, 0, 5, 1, 3, 2]))
        outputs, expected = (
            method().predict(method().adapt(params, part.support, None), task.query.x) for part in (reordered, task)
        )
        np.testing.assert_allclose(outputs, expected, rtol=1e-9)


@pytest.mark.parametrize("key", ["init_penalty", "init_scale"])
def test_a_setting_that_cannot_be_used_is_named(key):
    with pytest.raises(ConfigError, match=f"method.{key}=0"):
        method(**{key: 0})

"""Training from scratch against gradient descent written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.few_shot.methods.from_scratch import from_scratch
from metarun.models.mlp import mlp
from metarun.types import Split, Task

WAY, SIZE = 3, 4


def task_of_points():
    rng = np.random.RandomState(0)
    y = jnp.array([2, 0, 1, 1, 0, 2], jnp.int32)
    return Task(Split(jnp.asarray(rng.normal(size=(6, SIZE))), y), Split(jnp.asarray(rng.normal(size=(6, SIZE))), y))


def linear(**options):
    return from_scratch(model=mlp(num_outputs=WAY, hidden=[]), objective="classification", **options)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def gradients(x, y, kernel, bias):
    """Of the mean cross-entropy of softmax(x W + b)."""
    error = (softmax(x @ kernel + bias) - np.eye(WAY)[y]) / len(y)
    return x.T @ error, error.sum(0)


def test_gradient_descent_of_a_linear_model_equals_one_written_by_hand():
    with jax.enable_x64(True):
        task = task_of_points()
        method = linear(inner_optimizer="sgd", inner_lr=0.3, inner_steps=20)
        fresh = method.unadapted({}, task.support, jax.random.key(1)).state["head"]
        adapted = method.adapt({}, task.support, jax.random.key(1))
        outputs = method.predict(adapted, task.query.x)
        loss, _ = method.loss({}, task, jax.random.key(1))
    kernel, bias = np.asarray(fresh["kernel"]), np.asarray(fresh["bias"])
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)
    for _ in range(20):
        kernel_gradient, bias_gradient = gradients(x, y, kernel, bias)
        kernel, bias = kernel - 0.3 * kernel_gradient, bias - 0.3 * bias_gradient
    np.testing.assert_allclose(adapted.state["head"]["kernel"], kernel, rtol=1e-10)
    expected = np.asarray(task.query.x) @ kernel + bias
    np.testing.assert_allclose(outputs, expected, rtol=1e-9)
    p = softmax(expected)[np.arange(6), np.asarray(task.query.y)]
    np.testing.assert_allclose(loss, -np.log(p).mean(), rtol=1e-9)


def test_adam_equals_one_written_by_hand():
    with jax.enable_x64(True):
        task = task_of_points()
        method = linear(inner_optimizer="adam", inner_lr=0.1, inner_steps=5)
        fresh = method.unadapted({}, task.support, jax.random.key(1)).state["head"]
        adapted = method.adapt({}, task.support, jax.random.key(1)).state["head"]
    theta = [np.asarray(fresh["kernel"]), np.asarray(fresh["bias"])]
    m, v = [np.zeros_like(t) for t in theta], [np.zeros_like(t) for t in theta]
    for t in range(1, 6):
        for i, g in enumerate(gradients(np.asarray(task.support.x), np.asarray(task.support.y), *theta)):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            step = 0.1 * (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
            theta[i] = theta[i] - step
    np.testing.assert_allclose(adapted["kernel"], theta[0], rtol=1e-5)
    np.testing.assert_allclose(adapted["bias"], theta[1], rtol=1e-5, atol=1e-9)


def test_every_task_begins_with_parameters_of_its_own():
    task = task_of_points()
    method = linear()
    assert jax.jit(method.init)(jax.random.key(0), task) == {} and method.trains_on == "nothing"
    kernels = [method.unadapted({}, task.support, jax.random.key(seed)).state["head"]["kernel"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


@pytest.mark.parametrize("key, value", [("inner_optimizer", "lbfgs"), ("inner_lr", 0), ("inner_steps", 0)])
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        linear(**{key: value})

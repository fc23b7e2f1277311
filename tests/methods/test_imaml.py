"""iMAML on linear regression, whose inner problem has a closed form: ridge regression towards theta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.few_shot.methods.imaml import imaml
from metarun.types import Model, Split, Task

LAMBDA = 0.7
LINEAR = Model(
    init=lambda key, x: {"w": jax.random.normal(key, (x.shape[1], 1), x.dtype)},
    apply=lambda params, x, reference=None: x @ params["w"],
)


def regression_task():
    keys = jax.random.split(jax.random.key(0), 4)
    splits = [
        Split(
            jax.random.normal(keys[2 * i], (n, 3), jnp.float64), jax.random.normal(keys[2 * i + 1], (n, 1), jnp.float64)
        )
        for i, n in enumerate((5, 7))
    ]
    return Task(*splits)


def linear(**options):
    options = {"inner_lr": 0.2, "inner_steps": 500, "cg_steps": 3} | options
    return imaml(model=LINEAR, objective="regression", proximity=LAMBDA, **options)


def mse_gradient(split, w):
    return 2 * split.x.T @ (split.x @ w - split.y) / len(split.y)


@pytest.mark.parametrize("damping", [0, 0.5])
def test_solution_and_meta_gradient_have_their_closed_form(damping):
    with jax.enable_x64(True):
        task, method = regression_task(), linear(damping=damping)
        theta = jax.jit(method.init)(jax.random.key(1), task)
        support, query = (Split(np.array(s.x), np.array(s.y)) for s in task)
        n = len(support.y)
        hessian = 2 * support.x.T @ support.x / n
        phi = np.linalg.solve(
            hessian + LAMBDA * np.eye(3), 2 * support.x.T @ support.y / n + LAMBDA * np.array(theta["w"])
        )
        np.testing.assert_allclose(method.adapt(theta, task.support, None).state["w"], phi, rtol=1e-9)
        gradient = jax.grad(lambda p: method.loss(p, task, None)[0])(theta)
        expected = np.linalg.solve(np.eye(3) + hessian / (LAMBDA + damping), mse_gradient(query, phi))
        np.testing.assert_allclose(gradient["w"], expected, rtol=1e-9)


def test_the_meta_gradient_is_computed_under_vmap_as_alone():
    with jax.enable_x64(True):
        task, method = regression_task(), linear(inner_steps=4)
        other = task._replace(support=Split(task.support.x * 0.5, task.support.y + 1))
        theta = jax.jit(method.init)(jax.random.key(1), task)
        gradient = jax.grad(lambda p, task: method.loss(p, task, None)[0])
        together = jax.vmap(gradient, (None, 0))(theta, jax.tree.map(lambda *x: jnp.stack(x), task, other))
        for i, each in enumerate((task, other)):
            np.testing.assert_allclose(together["w"][i], gradient(theta, each)["w"], rtol=1e-9)


def test_the_larger_lambda_the_nearer_is_the_solution():
    with jax.enable_x64(True):
        task = regression_task()
        theta = jax.jit(linear().init)(jax.random.key(1), task)
        distances = []
        for proximity in (0.1, 1.0, 10.0):
            method = imaml(model=LINEAR, objective="regression", proximity=proximity, inner_lr=0.05, inner_steps=1000)
            distances.append(float(jnp.linalg.norm(method.adapt(theta, task.support, None).state["w"] - theta["w"])))
        assert distances[0] > distances[1] > distances[2] > 0


@pytest.mark.parametrize(
    "key, value", [("proximity", 0), ("cg_steps", 0), ("inner_steps", 0), ("inner_lr", "x"), ("damping", -1)]
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        imaml(model=LINEAR, objective="regression", **{key: value})

"""The support vector machine against hand-solved problems, SciPy, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import minimize

from metarun.few_shot import svm

crammer_singer = jax.jit(svm.crammer_singer, static_argnums=2)


def problem(n, way, size=6, seed=0):
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, size))
    return features @ features.T + 0.5 * np.eye(n), np.eye(way)[np.arange(n) % way]


def objective(alpha, kernel, targets):
    return 0.5 * np.sum(alpha * (kernel @ alpha)) - np.sum(alpha * targets)


@pytest.mark.parametrize("off_diagonal, penalty", [(0.2, 10.0), (0.2, 0.1), (-0.5, 10.0), (0.9, 1.0)])
def test_two_examples_of_two_classes_by_hand(off_diagonal, penalty):
    """alpha = t [[1, -1], [-1, 1]] has the value 2 (1 - c) t^2 - 2 t, least at t = 1 / (2 (1 - c)) or at the bound."""
    t = min(1 / (2 * (1 - off_diagonal)), penalty)
    with jax.enable_x64(True):
        kernel = jnp.array([[1, off_diagonal], [off_diagonal, 1]])
        found = crammer_singer(kernel, jnp.eye(2), penalty)
        np.testing.assert_allclose(found, t * np.array([[1, -1], [-1, 1]]), rtol=1e-9)


@pytest.mark.parametrize("n, way, penalty", [(3, 3, 0.1), (6, 3, 0.1), (6, 3, 10.0), (8, 2, 0.4)])
def test_agrees_with_scipy(n, way, penalty):
    kernel, targets = problem(n, way)
    solved = minimize(
        lambda a: objective(a.reshape(n, way), kernel, targets),
        np.zeros(n * way),
        jac=lambda a: (kernel @ a.reshape(n, way) - targets).ravel(),
        bounds=[(None, penalty * y) for y in targets.ravel()],
        constraints={
            "type": "eq",
            "fun": lambda a: a.reshape(n, way).sum(1),
            "jac": lambda a: np.kron(np.eye(n), np.ones(way)),
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert solved.success
    with jax.enable_x64(True):
        found = np.asarray(crammer_singer(jnp.array(kernel), jnp.array(targets), penalty))
    np.testing.assert_allclose(found, solved.x.reshape(n, way), atol=1e-6)
    assert (found <= penalty * targets + 1e-12).all()
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)


@pytest.mark.parametrize("size", [64, 1600])
def test_single_precision_is_enough(size):
    """Kernels of the size that convolutional features have, five classes of five examples."""
    kernel, targets = problem(25, 5, size)
    with jax.enable_x64(True):
        expected = np.asarray(crammer_singer(jnp.array(kernel), jnp.array(targets), 0.1))
    found = crammer_singer(jnp.array(kernel, jnp.float32), jnp.array(targets, jnp.float32), 0.1)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("penalty", [0.05, 0.3, 10.0])
def test_derivative_agrees_with_finite_differences(penalty):
    random = np.random.default_rng(1)
    with jax.enable_x64(True):
        targets, weights = jnp.eye(3)[jnp.arange(6) % 3], jnp.array(random.normal(size=(6, 3)))
        features = jnp.array(random.normal(size=(6, 4)))

        def value(features):
            return (weights * crammer_singer(features @ features.T + jnp.eye(6), targets, penalty)).sum()

        check_grads(value, (features,), order=1, modes=["rev"], eps=1e-6, atol=1e-5, rtol=1e-5)
        assert jnp.linalg.norm(jax.grad(value)(features)) > 1e-4


def test_targets_that_say_nothing_give_no_weight():
    kernel, _ = problem(6, 3)
    found = crammer_singer(jnp.array(kernel, jnp.float32), jnp.full((6, 3), 1 / 3), 0.1)
    np.testing.assert_allclose(found, 0, atol=1e-6)

"""The trust region step and the linear fit against linear algebra."""

import jax.numpy as jnp
import numpy as np
import pytest

from metarun.rl.baseline import features, fitted_values
from metarun.rl.trust_region import trust_region_step

FISHER = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]], np.float32)
SLOPE = np.array([1.0, -2.0, 0.5], np.float32)
RADIUS = 0.01


def step(loss):
    """From 0, with a divergence of 1/2 x F x."""
    flat = lambda params: jnp.concatenate([params["a"], params["b"]])
    tree = lambda x: {"a": jnp.asarray(x[:1]), "b": jnp.asarray(x[1:])}
    divergence = lambda params: flat(params) @ FISHER @ flat(params) / 2
    params, found = trust_region_step(
        tree(jnp.zeros(3)),
        tree(SLOPE),
        lambda v: tree(FISHER @ flat(v)),
        lambda params: (loss(flat(params)), divergence(params)),
        RADIUS,
    )
    return np.asarray(flat(params)), found


def test_a_linear_loss_is_followed_to_the_radius():
    x, found = step(lambda x: SLOPE @ x)
    natural = np.linalg.solve(FISHER, SLOPE)
    expected = -np.sqrt(2 * RADIUS / (SLOPE @ natural)) * natural
    # The line search may take its first step back where rounding has put the longest beyond the radius.
    assert any(np.allclose(x, c * expected, rtol=2e-3) for c in (1, 0.8))
    assert float(found["divergence"]) <= RADIUS and float(found["loss"]) == pytest.approx(SLOPE @ x, rel=1e-4)


def test_a_step_that_goes_too_far_is_shortened():
    longest = np.linalg.norm(step(lambda x: SLOPE @ x)[0])
    steep = lambda x: SLOPE @ x + 40 * x @ x
    x, found = step(steep)
    assert 0 < np.linalg.norm(x) < 0.7 * longest and float(found["loss"]) < 0


def test_where_nothing_helps_the_old_parameters_stay():
    x, found = step(lambda x: -SLOPE @ x)
    assert not x.any() and float(found["step"]) == 0 and float(found["divergence"]) == 0


def test_the_fit_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(40, 2)).astype(np.float32)
    x = np.asarray(features(jnp.asarray(observations)))
    time = np.arange(40)[:, None] / 100
    np.testing.assert_allclose(
        x, np.concatenate([observations, observations**2, time, time**2, time**3, np.ones((40, 1))], 1), rtol=1e-5
    )
    targets, weight = rng.normal(size=40).astype(np.float32), (np.arange(40) < 30).astype(np.float32)
    # A ridge is a further row for each coefficient, whose target is 0.
    ridge = 1e-5 * (np.sum(x[:30] ** 2) / 8 + 1)
    rows, wanted = np.concatenate([x[:30], ridge**0.5 * np.eye(8)]), np.concatenate([targets[:30], np.zeros(8)])
    coefficients = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    found = fitted_values(jnp.asarray(x), jnp.asarray(targets), jnp.asarray(weight))
    np.testing.assert_allclose(found, x @ coefficients, atol=5e-3)


def test_the_fit_stands_a_feature_that_is_always_nought():
    x = jnp.stack([jnp.zeros(5), jnp.ones(5)], 1)
    np.testing.assert_allclose(fitted_values(x, jnp.arange(5.0), jnp.ones(5)), 2.0, rtol=1e-3)

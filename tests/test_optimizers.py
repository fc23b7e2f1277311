"""The outer optimisers against trajectories worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metarun.errors import ConfigError
from metarun.training.optimizers import adam, sgd


def trajectory(optimizer, gradients):
    """Where a parameter that starts at 0 is after each gradient."""
    params, path = jnp.zeros(()), []
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params))
    return path


def rates(**schedule):
    """The learning rate of each step, which is what gradient descent moves on gradients of -1."""
    path = trajectory(sgd(**schedule), [-1.0] * schedule["steps"])
    return np.diff([0.0, *path])


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer counts by floats
        yield


def test_sgd_with_momentum_by_hand():
    np.testing.assert_allclose(trajectory(sgd(outer_lr=0.5, steps=3), [1.0, 2.0, -1.0]), [-0.5, -1.5, -1.0])
    # v = 1, 2 + 0.5, -1 + 1.25
    path = trajectory(sgd(outer_lr=0.5, steps=3, momentum=0.5), [1.0, 2.0, -1.0])
    np.testing.assert_allclose(path, [-0.5, -1.75, -1.875])


def test_adam_by_hand():
    # m = 0.1, v = 0.001: both corrected to 1, then the second step's m = 0.29 / 0.19, v = 0.004999 / 0.001999.
    second = (0.29 / 0.19) / np.sqrt(0.004999 / 0.001999)
    np.testing.assert_allclose(trajectory(adam(outer_lr=0.1, steps=2), [1.0, 2.0]), [-0.1, -0.1 - 0.1 * second], 1e-5)


def test_schedules_by_hand():
    np.testing.assert_allclose(rates(outer_lr=0.5, steps=3), [0.5, 0.5, 0.5])
    linear = rates(outer_lr=1.0, steps=4, schedule="linear", end_lr=0.2)
    np.testing.assert_allclose(linear, [1.0, 0.8, 0.6, 0.4], 1e-6)
    cosine = rates(outer_lr=2.0, steps=4, schedule="cosine", end_lr=1.0)
    np.testing.assert_allclose(cosine, 1 + 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4)), 1e-6)
    halving = rates(outer_lr=0.8, steps=5, schedule="halving", halve_every=2)
    np.testing.assert_allclose(halving, [0.8, 0.8, 0.4, 0.4, 0.2], 1e-6)


def test_gradients_are_clipped():
    np.testing.assert_allclose(trajectory(sgd(outer_lr=1.0, steps=2, clip_value=0.5), [3.0, -0.1]), [-0.5, -0.4])
    np.testing.assert_allclose(trajectory(sgd(outer_lr=1.0, steps=1, clip_norm=2.0), [4.0]), [-2.0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"schedule": "steps"}, "optimizer.schedule=steps: expected one of constant, cosine, linear, halving"),
        ({"end_lr": 0.2}, "optimizer.end_lr=0.2: expected a number from 0 to outer_lr=0.1"),
        ({"end_lr": -1.0}, "optimizer.end_lr=-1.0: expected a number, 0 or more"),
        ({"halve_every": 0}, "optimizer.halve_every=0"),
        ({"clip_norm": 0}, "optimizer.clip_norm=0"),
        ({"momentum": 1}, "optimizer.momentum=1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        sgd(outer_lr=0.1, steps=10, **settings)

"""Losses against values worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.few_shot.losses import correct, cross_entropy, reduce_loss, squared_error


def test_cross_entropy():
    outputs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    found = cross_entropy(outputs + 7.0, jnp.array([0, 2]))
    np.testing.assert_allclose(found, [np.log(2), -np.log(0.8)], rtol=1e-5)


def test_correct():
    np.testing.assert_array_equal(correct(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1, 1])), [1, 0])


def test_squared_error():
    np.testing.assert_array_equal(squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])), [2.5])


@pytest.mark.parametrize("reduction, expected", [("mean", 3.0), ("sum", 12.0), ("class_sum", 6.0)])
def test_reduce_loss(reduction, expected):
    # Two classes of two examples: means 2 and 4.
    assert reduce_loss(jnp.array([1.0, 3.0, 3.0, 5.0]), 2, reduction) == expected


def test_unknown_reduction_is_named():
    with pytest.raises(ConfigError, match="method.inner_reduction=median"):
        reduce_loss(jnp.ones(2), 2, "median")

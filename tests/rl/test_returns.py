"""Returns and advantages against their sums, written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from metarun.rl.returns import advantages, discounted, mean_over, normalised

REWARDS = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
VALUES = np.array([0.3, 0.1, -0.4, 0.7], np.float32)


def test_returns_are_discounted_sums():
    expected = [sum(0.9 ** (k - t) * REWARDS[k] for k in range(t, 4)) for t in range(4)]
    np.testing.assert_allclose(discounted(jnp.asarray(REWARDS), 0.9), expected, rtol=1e-6)


def test_nothing_is_carried_over_an_end():
    found = discounted(jnp.asarray(REWARDS), 0.9, jnp.array([0.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(found, [1 - 1.8, -2, 0.5 + 2.7, 3], rtol=1e-6)


def test_advantages_are_mixtures_of_n_step_ones():
    gamma, decay, last = 0.9, 0.6, 0.25
    values = [*VALUES, last]
    deltas = [REWARDS[t] + gamma * values[t + 1] - values[t] for t in range(4)]
    expected = [sum((gamma * decay) ** (k - t) * deltas[k] for k in range(t, 4)) for t in range(4)]
    found = advantages(jnp.asarray(REWARDS), jnp.asarray(VALUES), jnp.float32(last), gamma, decay)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_with_decay_one_an_advantage_is_the_return_less_the_value():
    found = advantages(jnp.asarray(REWARDS), jnp.asarray(VALUES), jnp.float32(0), 0.9, 1.0)
    np.testing.assert_allclose(found, discounted(jnp.asarray(REWARDS), 0.9) - VALUES, rtol=1e-5)


def test_what_weighs_nothing_counts_for_nothing():
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])
    found = np.asarray(normalised(jnp.array([1.0, 2.0, 1e6, 6.0]), weight))
    assert found[2] == 0 and found[[0, 1, 3]].mean() == pytest.approx(0, abs=1e-6)
    assert found[[0, 1, 3]].std() == pytest.approx(1, rel=1e-5)
    assert mean_over(jnp.array([1.0, 2.0, 1e6, 6.0]), weight) == 3


def test_what_is_all_but_equal_is_not_blown_up():
    nearly = jnp.array([1e-6, -1e-6, 0.0])
    np.testing.assert_allclose(normalised(nearly, jnp.ones(3), least=1e-3), 1e3 * nearly, rtol=1e-5)
    assert normalised(nearly, jnp.ones(3)).std() == pytest.approx(1, rel=1e-4)

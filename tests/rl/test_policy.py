"""Distributions over actions against scipy's, and their samples against their densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metarun.rl.environment import Continuous, Discrete
from metarun.rl.policy import policy_over

LOGITS = jnp.array([0.5, -1.0, 2.0])
NORMAL = jnp.array([0.5, -1.0, 0.2, -0.7])  # two means, two logarithms of deviations


def test_categorical():
    policy = policy_over(Discrete(3))
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert policy.num_outputs == 3
    for action in range(3):
        assert policy.log_prob(LOGITS, jnp.int32(action)) == pytest.approx(np.log(p[action]), rel=1e-5)
    assert policy.entropy(LOGITS) == pytest.approx(stats.entropy(p), rel=1e-5)
    drawn = jax.vmap(lambda key: policy.sample(key, LOGITS))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, p, atol=0.015)
    np.testing.assert_array_equal(policy.encode(jnp.int32(1)), [0, 1, 0])


def test_gaussian():
    policy = policy_over(Continuous(2))
    mean, deviation = np.asarray(NORMAL[:2]), np.exp(NORMAL[2:])
    assert policy.num_outputs == 4
    action = jnp.array([0.3, 0.1])
    assert policy.log_prob(NORMAL, action) == pytest.approx(stats.norm.logpdf(action, mean, deviation).sum(), rel=1e-5)
    assert policy.entropy(NORMAL) == pytest.approx(stats.norm.entropy(mean, deviation).sum(), rel=1e-5)
    drawn = jax.vmap(lambda key: policy.sample(key, NORMAL))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.03)


@pytest.mark.parametrize("actions, outputs", [(Discrete(3), LOGITS), (Continuous(2), NORMAL)])
def test_the_divergence_is_the_mean_difference_of_log_probabilities(actions, outputs):
    policy = policy_over(actions)
    others = outputs + jnp.linspace(-0.4, 0.5, outputs.size)
    drawn = jax.vmap(lambda key: policy.sample(key, outputs))(jax.random.split(jax.random.key(0), 50_000))
    differences = jax.vmap(lambda a: policy.log_prob(outputs, a) - policy.log_prob(others, a))(drawn)
    error = 4 * float(differences.std()) / 50_000**0.5
    assert policy.divergence(outputs, others) == pytest.approx(float(differences.mean()), abs=error)
    assert policy.divergence(outputs, outputs) == pytest.approx(0, abs=1e-6)

"""Planning against enumeration, the posterior against its moments."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.rl.planning import Model, plan, posterior

STATES, ACTIONS, HORIZON = 2, 2, 3


def value_of(model, policy, state, time=0):
    """Expected reward of a policy `{(time, state): action}`, by recursion."""
    if time == HORIZON:
        return 0.0
    action = policy[time, state]
    later = sum(model.transitions[state, action, s] * value_of(model, policy, s, time + 1) for s in range(STATES))
    return model.rewards[state, action] + later


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_is_worth_what_the_best_of_all_policies_is(seed):
    rng = np.random.default_rng(seed)
    model = Model(rng.dirichlet(np.ones(STATES), (STATES, ACTIONS)), rng.normal(size=(STATES, ACTIONS)))
    places = list(product(range(HORIZON), range(STATES)))
    policies = (dict(zip(places, chosen, strict=True)) for chosen in product(range(ACTIONS), repeat=len(places)))
    best = max(value_of(model, policy, 0) for policy in policies)
    found = plan(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model), HORIZON)
    assert found.shape == (HORIZON, STATES, ACTIONS)
    assert float(found[0, 0].max()) == pytest.approx(best, rel=1e-5)


def test_the_posterior_has_the_moments_of_the_conjugate_one():
    counts = jnp.array([[[3.0, 0.0]], [[0.0, 7.0]]])  # [states, actions, states]
    sums = jnp.array([[6.0], [0.0]])
    drawn = posterior(jax.random.key(0), counts, sums, 40_000, 1.0)
    np.testing.assert_allclose(drawn.transitions.mean(0), [[[0.8, 0.2]], [[1 / 9, 8 / 9]]], atol=5e-3)
    # Precision: the prior's and one for each reward.
    np.testing.assert_allclose(drawn.rewards.mean(0), [[7 / 4], [1 / 8]], atol=1e-2)
    np.testing.assert_allclose(drawn.rewards.std(0), [[0.5], [8**-0.5]], rtol=2e-2)

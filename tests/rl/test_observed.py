"""Standardised observations: their moments against NumPy's, and that the units of observations no longer matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metarun.compiled.task_map import default_layout
from metarun.rl.environments.point_navigation import point_navigation
from metarun.rl.methods.maml import maml
from metarun.rl.observed import including, of_nothing, standardised
from metarun.rl.rollouts import Sampling, player

LAYOUT = default_layout()._replace(chunk=None)
UNITS = np.array([1000.0, 0.1])
ADAM = optax.adam(0.01)


def learner_in(environment, optimizer=ADAM, **settings):
    """MAML of 4 tasks an outer step, with 4 rollouts in each before and after a gradient step."""
    training = {"optimizer": lambda steps: optimizer, "layout": LAYOUT, "meta_batch_size": 4, "steps": 2}
    return maml(environment=environment, **training, **{"hidden": (8,), "rollouts": 4, "outer": "ppo", **settings})


def after_two_outer_steps(environment, **settings):
    learner = learner_in(environment, **settings)
    params = learner.init(jax.random.key(0))
    opt_state, improve = learner.init_opt(params), jax.jit(learner.improve)
    tasks = jax.vmap(partial(environment.sample, split="train"))(jax.random.split(jax.random.key(1), 4))
    for i in range(2):
        keys = jax.random.split(jax.random.key(10 + i), 4)
        params, opt_state, _ = improve(params, opt_state, tasks, keys, jax.random.key(20 + i))
    return params


def test_moments_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    seen = rng.normal([3.0, -50.0], [0.2, 7.0], (5, 11, 2)) + np.arange(5)[:, None, None]
    counts = rng.random((5, 11)) < 0.7
    moments = of_nothing(2)
    for part, weight in zip(seen, counts, strict=True):
        moments = including(moments, jnp.asarray(part), jnp.asarray(weight, jnp.float32))
    assert moments.weight == int(counts.sum())
    np.testing.assert_allclose(moments.mean, seen[counts].mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, seen[counts].var(0), rtol=1e-4)
    scaled = np.asarray(standardised(moments, jnp.asarray(seen[counts])))
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-4)


def test_what_never_changes_is_nothing_and_what_is_far_is_bounded():
    moments = including(of_nothing(2), jnp.array([[2.0, 0.0], [2.0, 1.0]]), jnp.ones(2))
    np.testing.assert_array_equal(standardised(moments, jnp.array([[2.0, 1e9]])), [[0, 10]])


def test_the_units_of_observations_do_not_matter_once_something_was_seen():
    environment = point_navigation(horizon=10)
    seen = jax.random.normal(jax.random.key(5), (50, 2))

    plays = player(environment, (8,), 1.0, True, Sampling())
    start = plays.init(jax.random.key(0))

    def outputs_and_gradient(units):
        params = {**start, "observed": including(of_nothing(2), seen * jnp.asarray(units)[None], jnp.ones(50))}
        outputs = lambda params: plays.apply(params, seen * jnp.asarray(units)[None])
        return outputs(params), jax.grad(lambda params: (outputs(params) ** 2).sum())(params)["mean"]

    for plain, other in zip(*map(jax.tree.leaves, map(outputs_and_gradient, [np.ones(2), UNITS])), strict=True):
        assert np.abs(plain).max() > 0.01
        np.testing.assert_allclose(other, plain, rtol=1e-3, atol=1e-3)


def test_the_moments_are_of_all_that_was_seen_in_training_and_no_gradient_moves_them():
    params = after_two_outer_steps(point_navigation(horizon=10), standardise=True)
    # Two outer steps of 4 tasks, with 4 rollouts of 10 actions before a gradient step and as many after it.
    assert params["observed"].weight == 2 * 4 * 4 * 10 * 2
    assert (params["observed"].variance > 0).all()
    assert "observed" not in after_two_outer_steps(point_navigation(horizon=10))


def test_an_optimiser_leaves_the_moments_alone():
    def moments(optimizer):
        return after_two_outer_steps(point_navigation(horizon=10), optimizer=optimizer, standardise=True)["observed"]

    def shifts_the_moments(updates, state, params):
        return {
            **jax.tree.map(jnp.zeros_like, updates),
            "observed": jax.tree.map(jnp.ones_like, updates["observed"]),
        }, state

    meddling = optax.GradientTransformation(lambda params: (), shifts_the_moments)
    for still, shifted in zip(moments(optax.set_to_zero()), moments(meddling), strict=True):
        np.testing.assert_array_equal(shifted, still)


def test_the_standard_deviation_at_the_start_is_the_one_asked_for():
    params = learner_in(point_navigation(), initial_std=0.5).init(jax.random.key(0))
    np.testing.assert_allclose(np.exp(params["log_std"]), 0.5, rtol=1e-6)

"""The policy gradient against closed forms, and that it teaches."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting_environment import counting

from metarun.compiled.task_map import default_layout
from metarun.errors import ConfigError
from metarun.models.recurrent import gru
from metarun.rl.environments.bandits import bernoulli_bandit
from metarun.rl.meta_learner import Training
from metarun.rl.methods.rl2 import rl2
from metarun.rl.methods.snail import snail
from metarun.rl.pairs import of_pairs
from metarun.rl.policy_gradient import TrialLearning, side_by_side, trial_learner
from metarun.rl.proximal import clipped
from metarun.types import RecurrentModel

TRIALS = 20_000
LAYOUT = default_layout()._replace(chunk=None)
PLAIN = TrialLearning(algorithm="a2c", epochs=1, minibatches=1, entropy=0.0, value=0.0, discount=0.9)


def sgd(steps):
    del steps
    return optax.sgd(1.0)


def without_memory(num_outputs, num_inputs):
    """A network whose outputs are its parameters."""
    start = lambda dtype: jnp.zeros((), dtype)
    return RecurrentModel(
        init=lambda key, x: jnp.array([0.3, -0.5, 0.9, 0.0])[:num_outputs],
        start=start,
        step=lambda params, state, x: (state, params),
        unroll=lambda params, rows: jnp.broadcast_to(params, (rows.shape[0], num_outputs)),
    )


def learner_of(environment, trials, **settings):
    return trial_learner(Training(environment, sgd, LAYOUT, trials, 1), without_memory, replace(PLAIN, **settings))


def improved(learner, tasks, trials):
    params = learner.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), trials)
    after, _, metrics = jax.jit(learner.improve)(params, learner.init_opt(params), tasks, keys, jax.random.key(2))
    return np.asarray(params, np.float64), np.asarray(after, np.float64), metrics


def test_one_step_follows_the_gradient_of_the_expected_reward():
    # The counting environment pays 100 + action at its only step: J = sum p_a (100 + a), dJ / dlogit_a = p_a (r_a - J).
    learner = learner_of(counting(horizon=1, episodes=1), TRIALS)
    before, after, metrics = improved(learner, jnp.ones(TRIALS), TRIALS)
    p = np.exp(before[:3]) / np.exp(before[:3]).sum()
    reward = 100 + np.arange(3)
    expected = p @ reward
    deviation = np.sqrt(p @ (reward - expected) ** 2)  # by which advantages are divided
    assert float(metrics["reward"]) == pytest.approx(expected, abs=0.03)
    np.testing.assert_allclose((after - before)[:3], p * (reward - expected) / deviation, atol=0.02)
    assert after[3] == before[3]


def test_the_entropy_and_the_value_have_their_weights():
    environment = counting(horizon=1, episodes=1)
    plain = improved(learner_of(environment, 2000), jnp.ones(2000), 2000)
    more = improved(learner_of(environment, 2000, entropy=0.5, value=0.25), jnp.ones(2000), 2000)
    p = np.exp(plain[0][:3]) / np.exp(plain[0][:3]).sum()
    entropy_gradient = -p * (np.log(p) - p @ np.log(p))
    np.testing.assert_allclose((more[1] - plain[1])[:3], 0.5 * entropy_gradient, atol=1e-5)
    # Trials are one step long, so a reward is its own target: minus the gradient of (V - r)^2 at V = 0.
    assert more[1][3] - more[0][3] == pytest.approx(0.25 * 2 * float(more[2]["reward"]), rel=1e-4)


def test_the_surrogate_stops_paying_outside_of_the_clip():
    gradient = jax.vmap(jax.grad(partial(clipped, clip=0.2)))
    ratio = jnp.array([1.0, 1.1, 1.3, 0.7, 1.3, 0.7])
    advantage = jnp.array([2.0, 2.0, 2.0, -2.0, -2.0, 2.0])
    # Going further pays no more; going back always does.
    np.testing.assert_allclose(gradient(ratio, advantage), [2, 2, 0, 0, -2, 2])


def test_all_minibatches_of_all_epochs_are_followed():
    counted = lambda steps: optax.chain(optax.scale_by_schedule(lambda count: 1.0), optax.sgd(1e-3))
    environment = counting(horizon=2, episodes=2)
    learner = trial_learner(
        Training(environment, counted, LAYOUT, meta_batch_size=8, steps=1),
        lambda num_outputs, num_inputs: gru(num_outputs=num_outputs, hidden=4),
        replace(PLAIN, algorithm="ppo", epochs=3, minibatches=2, decay=0.9),
    )
    params = learner.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 8)
    _, opt_state, metrics = jax.jit(learner.improve)(
        params, learner.init_opt(params), jnp.ones(8), keys, jax.random.key(2)
    )
    assert int(opt_state[0].count) == 6
    assert set(metrics) == {"reward", "loss", "policy", "value", "entropy"}


def test_networks_side_by_side_have_nothing_in_common():
    policy, value = gru(num_outputs=3, hidden=4), gru(num_outputs=1, hidden=5)
    both, rows = side_by_side(policy=policy, value=value), jax.random.normal(jax.random.key(0), (6, 2))
    params = both.init(jax.random.key(1), rows[0])
    expected = jnp.concatenate([policy.unroll(params["policy"], rows), value.unroll(params["value"], rows)], 1)
    np.testing.assert_array_equal(both.unroll(params, rows), expected)
    state, outputs = both.start(jnp.float32), []
    for row in rows:
        state, output = both.step(params, state, row)
        outputs.append(output)
    np.testing.assert_allclose(jnp.stack(outputs), expected, atol=1e-6)


def test_pairs_of_the_last_observation_and_action_are_fed_with_what_they_earned():
    echo = RecurrentModel(
        init=lambda key, x: x,
        start=lambda dtype: (),
        step=lambda params, state, x: (state, x),
        unroll=lambda params, rows: rows,
    )
    network = of_pairs(echo, 2)
    rows = jnp.array([[1, 2, 0, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8, 1], [9, 10, 0, 1, 0, 2, 0]], jnp.float32)
    pairs = [5, 6, 7, 5, 6, 7, 10, 12, 14]  # of (1, 1, 2) and (5, 6, 7)
    expected = [
        [1, 2, *[0] * 18, 0, 0],
        [3, 4, *pairs, *[8 * x for x in pairs], 8, 1],
        [9, 10, 0, 1, 0, 0, 3, 0, 0, 4, 0, 0, 2, 0, 0, 6, 0, 0, 8, 0, 2, 0],
    ]
    np.testing.assert_array_equal(network.unroll((), rows), expected)
    np.testing.assert_array_equal(network.init(jax.random.key(0), rows[0]), expected[0])
    state = network.start(jnp.float32)
    for row, features in zip(rows, expected, strict=True):
        state, found = network.step((), state, row)
        np.testing.assert_array_equal(found, features)


def test_snail_is_fed_pairs_where_products_are_asked_for():
    environment = counting(horizon=2, episodes=2)
    sizes = {"filters": 3, "attention": [[2, 2], [2, 2]]}
    given = {"optimizer": sgd, "layout": LAYOUT, "meta_batch_size": 4, "steps": 1}
    init = lambda **more: snail(environment=environment, **given, **sizes, **more).init(jax.random.key(0))
    fed = lambda params: params["block0_attention"]["keys"]["kernel"].shape[0]
    observed, actions = environment.observation_size, environment.actions.n
    assert fed(init()) == observed + actions + 2
    assert fed(init(products=True)) == observed + 2 * (observed + 1) * actions + 2
    with pytest.raises(ConfigError, match="method.products=1"):
        init(products=1)


def test_a_value_of_its_own_leaves_the_policy_alone():
    # One gradient, whose part for the policy's network is the same whatever the value's weight.
    def after(**settings):
        learner = small(counting(horizon=2, episodes=2), algorithm="a2c", entropy=0.0, **settings)
        params = learner.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 200)
        return jax.jit(learner.improve)(params, learner.init_opt(params), jnp.ones(200), keys, jax.random.key(2))[0]

    few, much = after(shared=False, value=0.5), after(shared=False, value=50.0)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), few, much)
    assert all(jax.tree.leaves(same["policy"])) and not any(jax.tree.leaves(same["value"]))


def small(environment, **settings):
    return rl2(
        environment=environment,
        optimizer=lambda steps: optax.adam(3e-3),
        layout=LAYOUT,
        meta_batch_size=200,
        steps=1,
        **{"hidden": 24, **settings},
    )


def test_rl2_learns_to_pull_the_better_arm():
    environment = bernoulli_bandit(arms=2, episodes=10)
    learner = small(environment)

    @jax.jit
    def step(carry, key):
        task_key, play_key, order_key = jax.random.split(key, 3)
        tasks = jax.vmap(lambda key: environment.sample(key, "train"))(jax.random.split(task_key, 200))
        params, opt_state, metrics = learner.improve(*carry, tasks, jax.random.split(play_key, 200), order_key)
        return (params, opt_state), metrics["reward"]

    params = learner.init(jax.random.key(0))
    carry, rewards = (params, learner.init_opt(params)), []
    for key in jax.random.split(jax.random.key(1), 60):
        carry, reward = step(carry, key)
        rewards.append(float(reward))
    # Chance is 5, the Gittins index reaches 6.1.
    assert np.mean(rewards[:3]) == pytest.approx(5, abs=0.35)
    assert np.mean(rewards[-5:]) > 5.6


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"algorithm": "trpo"}, "method.algorithm=trpo"),
        ({"minibatches": 3}, "method.minibatches=3"),
        ({"discount": 1.5}, "method.discount=1.5"),
        ({"decay": -0.1}, "method.decay=-0.1"),
        ({"clip": 0}, "method.clip=0"),
        ({"cell": "rnn"}, "method.cell=rnn"),
        ({"hidden": 0}, "method.hidden=0"),
        ({"shared": 1}, "method.shared=1"),
        ({"products": 1}, "method.products=1"),
    ],
)
def test_a_value_that_cannot_be_is_refused(settings, key):
    with pytest.raises(ConfigError, match=key):
        small(bernoulli_bandit(arms=2, episodes=3), **settings)

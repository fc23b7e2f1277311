"""The policy that descends within a trial, against sums written out and bandits enumerated."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting_environment import counting

from metarun.compiled.task_map import default_layout
from metarun.errors import ConfigError
from metarun.rl.environments.bandits import bernoulli_bandit
from metarun.rl.environments.point_navigation import point_navigation
from metarun.rl.methods.maml_trial import maml_trial, policy_that_descends

HORIZON, EPISODES, OBSERVED, ACTIONS = 3, 4, 2, 3
LENGTH = HORIZON * EPISODES


def made(environment, trials=8, **settings):
    return maml_trial(
        environment=environment,
        optimizer=lambda steps: optax.adam(0.01),
        layout=default_layout()._replace(chunk=None),
        meta_batch_size=trials,
        steps=100,
        **settings,
    )


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def a_trial(seed):
    """Observations, actions and rewards of a trial, and what a network is fed of them."""
    rng = np.random.default_rng(seed)
    seen, actions, rewards = (
        rng.normal(size=(LENGTH, OBSERVED)),
        rng.integers(ACTIONS, size=LENGTH),
        rng.normal(size=LENGTH),
    )
    done = (np.arange(LENGTH) + 1) % HORIZON == 0
    before = np.column_stack([np.eye(ACTIONS)[actions], rewards, done])[:-1]
    rows = np.column_stack([seen, np.vstack([np.zeros(ACTIONS + 2), before])])
    return seen, actions, rewards, jnp.asarray(rows, jnp.float32)


@pytest.mark.parametrize("rollouts", [1, 2, 3])
def test_it_takes_the_steps_of_reinforce(rollouts):
    """theta + alpha / K sum over episodes and i of grad log pi(a_i | s_i) sum over t >= i of gamma^(t - i) (r_t - b)."""
    lr, discount, baseline = 0.3, 0.9, 0.4
    network = policy_that_descends(
        num_actions=ACTIONS, hidden=[], observation_size=OBSERVED, rollouts=rollouts, lr=lr, discount=discount
    )
    seen, actions, rewards, rows = a_trial(rollouts)
    params = network.init(jax.random.key(0), rows[0])
    found = network.unroll({**params, "baseline": jnp.float32(baseline)}, rows)

    head = params["theta"]["head"]
    # The network is linear in the observation, a constant 1 and its bias, which is another.
    theta = np.vstack([head["kernel"], head["bias"]]).astype(np.float64)
    inputs = np.column_stack([seen, np.ones((LENGTH, 2))])
    update, expected = np.zeros_like(theta), []
    for episode in range(EPISODES):
        steps = range(episode * HORIZON, (episode + 1) * HORIZON)
        expected += [inputs[i] @ theta for i in steps]
        for i in steps:
            gain = sum(discount ** (t - i) * (rewards[t] - baseline) for t in steps if t >= i)
            update += gain * np.outer(inputs[i], np.eye(ACTIONS)[actions[i]] - softmax(inputs[i] @ theta))
        if (episode + 1) % rollouts == 0:
            theta, update = theta + lr / rollouts * update, np.zeros_like(theta)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_outer_gradient_goes_through_all_steps():
    network = policy_that_descends(
        num_actions=ACTIONS, hidden=[4], observation_size=OBSERVED, rollouts=1, lr=0.3, discount=0.9
    )
    with jax.enable_x64(True):
        rows = a_trial(0)[-1].astype(jnp.float64)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(LENGTH, ACTIONS)))
        params = network.init(jax.random.key(0), rows[0])
        score = lambda params: (weights * jax.nn.log_softmax(network.unroll(params, rows))).sum()
        along = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape)), params)
        moved = lambda by: score(jax.tree.map(lambda p, v: p + by * v, params, along))
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, v: (g * v).sum(), jax.grad(score)(params), along)))
        assert float(slope) == pytest.approx(float((moved(1e-5) - moved(-1e-5)) / 2e-5), rel=1e-6)
        assert float(jax.grad(score)(params)["baseline"]) != 0


def test_without_layers_it_is_the_gradient_bandit_enumerated():
    """Sutton and Barto 2018, section 2.8: H_a += alpha (r - b) ([a taken] - pi_a); here twice alpha, of kernel and bias."""
    pulls, lr, baseline, trials = 4, 1.0, 0.7, 40_000
    environment = bernoulli_bandit(arms=2, episodes=pulls)
    learner = made(environment, hidden=[], inner_lr=lr)
    params = jax.tree.map(jnp.zeros_like, learner.init(jax.random.key(0)))
    params["policy"]["baseline"] = jnp.float32(baseline)
    chances = np.array([0.2, 0.9])
    keys = jax.random.split(jax.random.key(1), trials)
    played = jax.jit(
        jax.vmap(lambda key: learner.outcome(params, jnp.asarray(chances, jnp.float32), key, False).curve)
    )(keys)

    expected = np.zeros(pulls)
    for arms, rewards in product(product(range(2), repeat=pulls), product((0, 1), repeat=pulls)):
        preference, chance = np.zeros(2), 1.0
        for arm, reward in zip(arms, rewards, strict=True):
            pi = softmax(preference)
            chance *= pi[arm] * (chances[arm] if reward else 1 - chances[arm])
            preference = preference + 2 * lr * (reward - baseline) * (np.eye(2)[arm] - pi)
        expected += chance * np.array(rewards)
    np.testing.assert_allclose(np.asarray(played).mean(0), expected, atol=5 * 0.5 / trials**0.5)
    assert expected[-1] > expected[0] + 0.15


def test_it_learns_to_pull_the_better_arm():
    environment = bernoulli_bandit(arms=5, episodes=10)
    learner = made(environment, trials=100)
    params = learner.init(jax.random.key(0))

    @jax.jit
    def improve(params, opt_state, key):
        task_key, play_key, key = jax.random.split(key, 3)
        tasks = jax.vmap(lambda key: environment.sample(key, "train"))(jax.random.split(task_key, 100))
        return learner.improve(params, opt_state, tasks, jax.random.split(play_key, 100), key)

    opt_state, rewards = learner.init_opt(params), []
    for number in range(50):
        params, opt_state, metrics = improve(params, opt_state, jax.random.fold_in(jax.random.key(3), number))
        rewards.append(float(metrics["reward"]))
    # 5 at random; 6.33 for one who keeps the first arm that pays; 6.6 by the Gittins index.
    assert np.mean(rewards[-20:]) > 6.0


@pytest.mark.parametrize(
    "key, value",
    [
        ("rollouts", 0),
        ("hidden", "x"),
        ("inner_lr", 0),
        ("inner_discount", 2),
        ("value_hidden", 0.5),
        ("algorithm", "trpo"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(key, value):
    with pytest.raises(ConfigError, match=f"method.{key}={value}"):
        made(counting(horizon=2, episodes=2), **{key: value})


def test_continuous_actions_are_refused():
    with pytest.raises(ConfigError, match="method=maml_trial: expected maml"):
        made(point_navigation(episodes=2, horizon=3))

"""MAML for reinforcement learning against the gradient in closed form of a task with one step."""

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
from metarun.rl.exploration import credit_of
from metarun.rl.methods.maml import maml
from metarun.rl.trial import play

ROLLOUTS, TASKS, ALPHA = 20_000, 16, 0.5
START = np.array([0.3, -0.5, 0.9])
REWARDS = np.arange(3.0)  # of the counting environment, but for a constant


def made(environment, **settings):
    return maml(
        environment=environment,
        optimizer=lambda steps: optax.sgd(1.0),
        layout=default_layout()._replace(chunk=None),
        meta_batch_size=settings.pop("meta_batch_size", 2),
        steps=1,
        **{"hidden": (), "inner_lr": ALPHA, "outer": "ppo", "epochs": 1, **settings},
    )


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def gradient(logits):
    """Of the expected reward in deviations of the reward, as advantages are measured, which are constants."""
    p = softmax(logits)
    advantage = REWARDS - p @ REWARDS
    return p * advantage / np.sqrt(p @ advantage**2)


def hessian(logits):
    """The derivative of p_a A_a / deviation in the logits, the deviation held."""
    p = softmax(logits)
    advantage = REWARDS - p @ REWARDS
    exact = np.diag(p * advantage) - np.outer(p * advantage, p) - np.outer(p, p * advantage)
    return exact / np.sqrt(p @ advantage**2)


def meta_gradient_of(learner, rollouts):
    """What one outer step of gradient descent with rate 1 adds to the logits, which are the head's bias."""
    params = learner.init(jax.random.key(0))
    params["mean"]["head"]["bias"] = jnp.asarray(START, jnp.float32)
    keys = jax.random.split(jax.random.key(1), TASKS)
    args = params, learner.init_opt(params), jnp.ones(TASKS), keys, jax.random.key(2)
    after, _, metrics = jax.jit(learner.improve)(*args)
    return np.asarray(after["mean"]["head"]["bias"]) - START, metrics


@pytest.mark.parametrize(
    "settings, curvature",
    [
        # The second derivative of log pi is the same for all actions, so that of log pi A is 0 in expectation: with one step
        # the estimator of Finn et al. sees nothing of how theta decides what is sampled.
        ({"estimator": "log_prob"}, 0.0),
        ({"estimator": "ratio"}, 1.0),
        ({"estimator": "ratio", "first_order": True}, 0.0),
    ],
)
def test_the_meta_gradient_is_that_of_the_closed_form(settings, curvature):
    found, metrics = meta_gradient_of(made(counting(horizon=1, episodes=1), rollouts=ROLLOUTS, **settings), ROLLOUTS)
    after = START + ALPHA * gradient(START)
    expected = (np.eye(3) + curvature * ALPHA * hessian(START)) @ gradient(after)
    np.testing.assert_allclose(found, expected, atol=0.006)
    # The terms differ by more than that, so that neither passes for the other.
    assert np.abs(ALPHA * hessian(START) @ gradient(after)).max() > 0.03
    assert float(metrics["reward/0"]) == pytest.approx(100 + softmax(START) @ REWARDS, abs=0.02)
    assert float(metrics["reward/1"]) == pytest.approx(100 + softmax(after) @ REWARDS, abs=0.02)


@pytest.mark.parametrize("every_step", [False, True])
def test_of_several_steps_the_last_or_all_of_them_count(every_step):
    settings = {"inner_steps": 2, "later_lr": 2.0, "first_order": True, "every_step": every_step}
    found, metrics = meta_gradient_of(made(counting(horizon=1, episodes=1), rollouts=ROLLOUTS, **settings), ROLLOUTS)
    once = START + ALPHA * gradient(START)
    twice = once + 2.0 * gradient(once)
    expected = (gradient(once) + gradient(twice)) / 2 if every_step else gradient(twice)
    np.testing.assert_allclose(found, expected, atol=0.006)
    assert np.abs(gradient(once) - gradient(twice)).max() > 0.05
    assert float(metrics["reward/2"]) == pytest.approx(100 + softmax(twice) @ REWARDS, abs=0.02)


def test_the_sampling_term_is_that_of_all_batches_enumerated():
    tasks, alpha = 40_000, 1.0

    def step(exploration):
        learner = made(
            counting(horizon=1, episodes=1),
            rollouts=2,
            meta_batch_size=tasks,
            inner_lr=alpha,
            exploration=exploration,
            clip=1e6,
        )
        params = learner.init(jax.random.key(0))
        params["mean"]["head"]["bias"] = jnp.asarray(START, jnp.float32)
        keys = jax.random.split(jax.random.key(1), tasks)
        args = params, learner.init_opt(params), jnp.ones(tasks), keys, jax.random.key(2)
        return np.asarray(jax.jit(learner.improve)(*args)[0]["mean"]["head"]["bias"])

    p, score = softmax(START), np.eye(3) - softmax(START)
    chances, scores, means, spreads = [], [], [], []
    for first in range(3):
        for second in range(3):
            advantage = np.sign(first - second) * np.array([1, -1])
            after = softmax(START + alpha * (advantage @ score[[first, second]]) / 2)
            chances.append(p[first] * p[second])
            scores.append(score[[first, second]].mean(0))
            means.append(after @ REWARDS)
            spreads.append(after @ REWARDS**2 - means[-1] ** 2)
    chances, means = np.array(chances), np.array(means)
    # The return after the step is the mean of two rewards.
    deviation = np.sqrt(chances @ (np.array(spreads) / 2 + means**2) - (chances @ means) ** 2)
    expected = chances @ (np.array(scores) * means[:, None]) / deviation
    assert np.abs(expected).max() > 0.02
    np.testing.assert_allclose(step(1.0) - step(0.0), expected, atol=0.006)


def test_the_credit_of_a_task_is_against_the_others():
    np.testing.assert_allclose(
        credit_of(jnp.array([1.0, 2.0, 6.0])), np.array([-3, -1.5, 4.5]) / np.sqrt(14 / 3), rtol=1e-5
    )
    assert not credit_of(jnp.array([7.0])).any() and not credit_of(jnp.full(3, 7.0)).any()


def test_the_estimator_s_variance_falls_with_the_rollouts():
    def spread(rollouts):
        learner = made(counting(horizon=1, episodes=1), rollouts=rollouts, estimator="ratio")
        params = learner.init(jax.random.key(0))

        @jax.jit
        def one(key):
            args = params, learner.init_opt(params), jnp.ones(2), jax.random.split(key, 2), jax.random.key(2)
            return learner.improve(*args)[0]["mean"]["head"]["bias"]

        return np.std([np.asarray(one(key)) for key in jax.random.split(jax.random.key(3), 200)], axis=0).mean()

    assert spread(50) / spread(800) == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("outer", [pytest.param("trpo", marks=pytest.mark.slow), "ppo"])
def test_returns_rise_with_inner_steps_and_outer_ones(outer):
    environment = counting(horizon=3, episodes=1)
    learner = made(environment, rollouts=20, outer=outer, radius=0.05, epochs=3, eval_inner_steps=2, hidden=(8,))
    params = learner.init(jax.random.key(0))
    opt_state, rewards = learner.init_opt(params), []
    improve = jax.jit(learner.improve)
    for number in range(15):
        keys = jax.random.split(jax.random.key(number), TASKS)
        params, opt_state, metrics = improve(params, opt_state, jnp.ones(TASKS), keys, jax.random.key(99))
        rewards.append(float(metrics["reward"]))
    # An episode earns 330 and its actions, of which the best is 2 and chance 1.
    assert rewards[0] < 334 and rewards[-1] > rewards[0] + 0.7
    outcome = jax.jit(lambda key: learner.outcome(params, jnp.float32(1), key, False))(jax.random.key(5))
    assert outcome.curve.shape == (3,) and float(outcome.value) == float(outcome.curve[-1])
    blind = jax.jit(lambda key: learner.outcome(params, jnp.float32(1), key, True))(jax.random.key(5))
    assert float(blind.curve[0]) == float(outcome.curve[0])


def test_trpo_stays_within_its_radius():
    learner = made(counting(horizon=3, episodes=1), rollouts=20, outer="trpo", radius=0.02, hidden=(8,))
    params = learner.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), TASKS)
    after, _, metrics = jax.jit(learner.improve)(
        params, learner.init_opt(params), jnp.ones(TASKS), keys, jax.random.key(2)
    )
    assert 0.01 < float(metrics["divergence"]) <= 0.02 and float(metrics["step"]) > 0
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (params, after)), strict=True))


def test_a_point_moves_by_its_actions_and_ends_near_its_goal():
    environment = point_navigation(horizon=10)
    goal = jnp.array([0.2, -0.1])

    def towards(memory, seen, key):
        return memory, 20 * (goal - seen.observation), ()  # cut to steps of 0.1

    agent = environment.yardsticks["random"]._replace(act=towards)
    trajectory = play(environment, agent, goal, jax.random.key(0))
    np.testing.assert_allclose(trajectory.seen.observation[:3], [[0, 0], [0.1, -0.1], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(trajectory.reward[:2], [-0.1, 0], atol=1e-5)
    assert trajectory.terminated.tolist() == [False, True] + [False] * 8 and not trajectory.reward[2:].any()


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"outer": "sgd"}, "method.outer=sgd"),
        ({"hidden": 16}, "method.hidden=16: expected a list of whole numbers"),
        ({"estimator": "dice"}, "method.estimator=dice"),
        ({"inner_lr": 0}, "method.inner_lr=0"),
        ({"rollouts": 0}, "method.rollouts=0"),
        ({"radius": -1}, "method.radius=-1"),
        ({"exploration": -1}, "method.exploration=-1"),
        ({"later_lr": 0}, "method.later_lr=0"),
        ({"every_step": "no"}, "method.every_step=no"),
        ({"initial_std": 0}, "method.initial_std=0"),
        ({"standardise": 2}, "method.standardise=2"),
    ],
)
def test_a_value_that_cannot_be_is_refused(settings, key):
    with pytest.raises(ConfigError, match=key):
        made(counting(horizon=1, episodes=1), **settings)
    with pytest.raises(ConfigError, match="env.episodes=2: expected 1"):
        made(counting(horizon=1, episodes=2))


def test_an_environment_that_shows_nothing_is_refused():
    with pytest.raises(ConfigError, match="method=maml: expected maml_trial"):
        made(bernoulli_bandit(arms=2, episodes=1))

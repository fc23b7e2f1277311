"""Bandits and the agents for them, by what is known of both in closed form or has been published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.rl import bandit_agents
from metarun.rl.bandit_agents import BERNOULLI, Counts
from metarun.rl.environments import bandits
from metarun.rl.trial import play

MAKERS = {
    "bernoulli": lambda: bandits.bernoulli_bandit(arms=5, episodes=10),
    "gaussian": lambda: bandits.gaussian_bandit(arms=3, episodes=10),
    "dependent": lambda: bandits.dependent_bandit(episodes=10, difficulty="hard"),
    "informative": lambda: bandits.informative_bandit(episodes=5),
    "restless": lambda: bandits.restless_bandit(arms=2, pulls=20),
}


def totals(environment, agent, trials, split="test", seed=0):
    """Total rewards of trials, each in a task of its own, and what is best in each task: `[trials]` both."""

    def one(key):
        task_key, key = jax.random.split(key)
        task = environment.sample(task_key, split)
        return play(environment, agent, task, key).reward.sum(), environment.optimum(task)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), trials))
    return tuple(np.asarray(x, np.float64) for x in found)


def within(values, expected, slack=0.0):
    return abs(values.mean() - expected) <= 4 * values.std() / len(values) ** 0.5 + slack


@pytest.mark.parametrize("name", MAKERS)
def test_tasks_of_the_splits_are_disjoint_and_trials_have_their_length(name):
    environment = MAKERS[name]()

    def sample(split):
        return np.asarray(
            jax.vmap(lambda key: environment.sample(key, split))(jax.random.split(jax.random.key(0), 300))
        )

    tasks = {split: {task.tobytes() for task in sample(split)} for split in ("train", "val", "test")}
    assert not tasks["train"] & tasks["test"] and not tasks["train"] & tasks["val"] and not tasks["val"] & tasks["test"]
    trajectory = play(
        environment, environment.yardsticks["random"], environment.sample(jax.random.key(1), "test"), jax.random.key(2)
    )
    assert trajectory.reward.shape == (environment.length,) and trajectory.live.all()


@pytest.mark.parametrize("arms", [2, 5])
def test_chance_and_the_optimum_are_what_they_are_in_closed_form(arms):
    environment = bandits.bernoulli_bandit(arms=arms, episodes=10)
    random, best = totals(environment, environment.yardsticks["random"], 20_000)
    assert within(random, 5) and within(best, 10 * arms / (arms + 1))


# Reference figures of Duan et al. 2016, table 1, k = 5, n = 10, with room for the tenth that they are rounded to and the
# interval of their thousand trials.
@pytest.mark.parametrize("agent, published", [("random", 5.0), ("gittins", 6.6), ("ucb1", 6.7), ("thompson", 5.7)])
def test_the_agents_earn_what_was_published(agent, published):
    environment = MAKERS["bernoulli"]()
    earned, best = totals(environment, environment.yardsticks[agent], 4000)
    assert within(earned, published, slack=0.2)
    assert (earned <= 10).all() and earned.mean() < best.mean()


def test_posterior_and_choices_by_hand():
    counts = Counts(jnp.array([2.0, 0.0]), jnp.array([2.0, 0.0]))
    strength, mean = BERNOULLI.posterior(counts)
    assert strength.tolist() == [4, 2] and mean.tolist() == [0.75, 0.5]
    noise = bandit_agents.gaussian(2.0)
    strength, mean = noise.posterior(Counts(jnp.array([4.0]), jnp.array([8.0])))
    # Precisions 1 of the prior N(0, 1) and 4 / 4 of the pulls: mean 2 / 2, variance 1 / 2.
    assert mean[0] == pytest.approx(1) and 2.0**2 / strength[0] == pytest.approx(0.5)
    drawn = jax.vmap(lambda key: noise.sample(key, strength, mean))(jax.random.split(jax.random.key(0), 20_000))
    assert drawn.std() == pytest.approx(0.5**0.5, rel=0.02)


def test_the_informed_find_the_best_arm_at_the_second_pull():
    environment = MAKERS["informative"]()
    for seed in range(5):
        task = environment.sample(jax.random.key(seed), "test")
        trajectory = play(environment, environment.yardsticks["informed"], task, jax.random.key(9))
        assert trajectory.action.tolist() == [10] + [int(task[:10].argmax())] * 4
        np.testing.assert_allclose(trajectory.reward, [task[10], 5, 5, 5, 5], rtol=1e-6)


def test_dependent_arms_add_up_to_one():
    for difficulty, low in (("easy", 0.1), ("medium", 0.25), ("hard", 0.4)):
        environment = bandits.dependent_bandit(episodes=5, difficulty=difficulty)
        tasks = np.stack([environment.sample(jax.random.key(seed), "train") for seed in range(20)])
        np.testing.assert_allclose(tasks.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(tasks.min(1), low, atol=1.1e-3)
        assert 0 < (tasks[:, 0] < 0.5).mean() < 1


def test_a_walk_stays_between_zero_and_one_and_moves():
    environment = bandits.restless_bandit(arms=3, pulls=500, volatility=0.2)
    walk = np.asarray(environment.sample(jax.random.key(0), "train"))
    assert walk.shape == (500, 3) and walk.min() >= 0 and walk.max() <= 1
    steps = np.abs(np.diff(walk, axis=0))
    assert 0.05 < steps.mean() < 0.2 and environment.optimum(walk) == pytest.approx(walk.max(1).sum(), rel=1e-5)


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda: bandits.bernoulli_bandit(arms=1, episodes=10), "env.arms=1"),
        (lambda: bandits.bernoulli_bandit(arms=2, episodes=0), "env.episodes=0"),
        (lambda: bandits.gaussian_bandit(arms=2, episodes=3, noise=-1), "env.noise=-1"),
        (lambda: bandits.dependent_bandit(episodes=3, difficulty="harder"), "env.difficulty=harder"),
        (lambda: bandits.restless_bandit(arms=2, pulls=3, volatility=0), "env.volatility=0"),
    ],
)
def test_a_value_that_cannot_be_is_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()

"""The two-step task by its frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.rl.environment import Agent
from metarun.rl.environments.two_step import two_step
from metarun.rl.trial import play

ROUNDS = 4000


def always(action):
    return Agent(lambda key: (), lambda memory, seen, key: (memory, jnp.int32(action), ()))


@pytest.mark.parametrize("action", [0, 1])
def test_actions_lead_where_they_mostly_lead_and_the_better_state_pays(action):
    environment = two_step(rounds=ROUNDS)
    task = environment.sample(jax.random.key(1), "train")
    trajectory = jax.jit(lambda key: play(environment, always(action), task, key))(jax.random.key(2))
    seen, reward = np.asarray(trajectory.seen.observation), np.asarray(trajectory.reward)
    assert (seen[::2] == [1, 0, 0]).all() and not seen[1::2, 0].any() and not reward[::2].any()
    place = seen[1::2].argmax(1) - 1
    assert (place == action).mean() == pytest.approx(0.8, abs=0.03)
    better = place == np.asarray(task.better)
    assert reward[1::2][better].mean() == pytest.approx(0.9, abs=0.03)
    assert reward[1::2][~better].mean() == pytest.approx(0.1, abs=0.03)


def test_the_states_change_places_and_one_who_knows_earns_the_optimum():
    environment = two_step(rounds=ROUNDS)
    task = environment.sample(jax.random.key(3), "test")
    assert (np.diff(task.better) != 0).mean() == pytest.approx(0.025, abs=0.01)
    knows = Agent(lambda key: jnp.int32(0), lambda time, seen, key: (time + 1, task.better[time // 2], ()))
    earned = float(jax.jit(lambda key: play(environment, knows, task, key).reward.sum())(jax.random.key(4)))
    assert earned == pytest.approx(float(environment.optimum(task)), abs=4 * (0.25 * ROUNDS) ** 0.5)


def test_tasks_of_the_splits_are_disjoint():
    environment = two_step(rounds=3)

    def pays(split):
        keys = jax.random.split(jax.random.key(0), 500)
        return set(np.asarray(jax.vmap(lambda key: environment.sample(key, split).pays)(keys)).tolist())

    assert not pays("train") & pays("test") and not pays("val") & pays("test") and not pays("train") & pays("val")

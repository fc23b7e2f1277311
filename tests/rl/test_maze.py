"""Mazes by hand: moves, walls, goals and the shortest way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarun.errors import ConfigError
from metarun.rl.environment import Agent
from metarun.rl.environments.maze import Maze, distances, maze
from metarun.rl.trial import by_episode, play

UP, RIGHT, DOWN, LEFT = range(4)
#  . # G
#  . s #
#  . . .
BY_HAND = Maze(jnp.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], bool), jnp.array([0, 2]))
OPEN = Maze(jnp.array([[0, 0, 0], [0, 0, 1], [0, 0, 0]], bool), jnp.array([0, 2]))


def doing(*actions):
    plan = jnp.array(actions)
    return Agent(lambda key: jnp.int32(0), lambda time, seen, key: (time + 1, plan[time % len(actions)], ()))


def test_distances_by_hand():
    np.testing.assert_array_equal(distances(OPEN), [[2, 1, 0], [3, 2, np.inf], [4, 3, 4]])
    assert np.isinf(distances(BY_HAND)[1, 1])


def test_walls_stop_and_the_goal_pays_and_ends_the_episode():
    environment = maze(size=3, horizon=6, episodes=2)
    # Into the wall at the right, up, to the goal; and the same again.
    trajectory = play(environment, doing(RIGHT, UP, RIGHT), OPEN, jax.random.key(0))
    cells = trajectory.seen.observation[:, :9].argmax(1)
    assert cells[:4].tolist() == [4, 4, 1, 4]
    np.testing.assert_allclose(trajectory.reward[:6], [-0.01, -0.01, 1] * 2, rtol=1e-6)
    assert trajectory.terminated[:6].tolist() == [False, False, True] * 2 and not trajectory.live[6:].any()
    np.testing.assert_allclose(by_episode(trajectory, 2), [0.98, 0.98], rtol=1e-6)
    # From the middle one can go up, down and left.
    assert trajectory.seen.observation[0, 9:].tolist() == [1, 0, 1, 1]


def test_the_shortest_way_earns_the_optimum():
    environment = maze(size=3, horizon=6, episodes=2)
    trajectory = play(environment, doing(UP, RIGHT), OPEN, jax.random.key(0))
    assert float(trajectory.reward.sum()) == pytest.approx(float(environment.optimum(OPEN)))


def test_every_maze_has_a_way_and_the_splits_have_goals_of_their_own():
    environment = maze(size=5, density=0.6)

    def tasks(split):
        keys = jax.random.split(jax.random.key(0), 200)
        return jax.vmap(lambda key: environment.sample(key, split))(keys)

    goals = {}
    for split in ("train", "val", "test"):
        drawn = tasks(split)
        steps = jax.vmap(distances)(drawn)[:, 2, 2]
        assert np.isfinite(steps).all() and steps.max() > 2
        goals[split] = {tuple(goal) for goal in np.asarray(drawn.goal).tolist()}
    assert [len(its) for its in goals.values()] == [8, 8, 8] and len(set.union(*goals.values())) == 24


@pytest.mark.parametrize("settings", [{"size": 2}, {"density": 1.5}, {"horizon": 0}])
def test_a_value_that_cannot_be_is_refused(settings):
    with pytest.raises(ConfigError, match=f"env.{next(iter(settings))}="):
        maze(**settings)

"""Mazes on a grid, with a goal that has to be found and then found again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metarun.errors import ConfigError, positive_int, unit_fraction
from metarun.rl import task_space
from metarun.rl.environment import Discrete, Environment, Step, random_agent
from metarun.types import Array

_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
_COST = 0.01  # of a step that does not reach the goal


class Maze(NamedTuple):
    """A task.

    Attributes:
      walls: `[size, size]` bool.
      goal: row and column, `[2]` int32.
    """

    walls: Array
    goal: Array


def distances(maze: Maze) -> Array:
    """Steps to the goal from each cell, `[size, size]`, infinite where none lead there."""
    size = maze.walls.shape[0]
    start = jnp.full((size, size), jnp.inf).at[maze.goal[0], maze.goal[1]].set(0.0)

    def relax(_, steps):
        around = jnp.pad(steps, 1, constant_values=jnp.inf)
        nearest = jnp.stack([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]]).min(0)
        return jnp.where(maze.walls, jnp.inf, jnp.minimum(steps, nearest + 1))

    return lax.fori_loop(0, size * size, relax, start)


def maze(*, size: int = 5, density: float = 0.3, horizon: int = 30, episodes: int = 2) -> Environment:
    """From the middle of a grid to a goal that is not seen; reaching it pays 1 and ends the episode.

    Cells are walls at random, but for those of one way to the goal, along its row and then its column. Seen are the cell,
    one-hot, and which of the four around it can be entered; what a learner has found out serves it in the later episodes.
    A step costs 0.01 unless it reaches the goal; one into a wall goes nowhere. The cells that can be goals are dealt to
    the splits.

    Args:
      size: of a side.
      density: probability that a cell is a wall.
      horizon: steps of an episode, at most.
      episodes: of a trial.

    Raises:
      ConfigError: for a value that is not allowed.
    """
    size, density = positive_int("env.size", size), unit_fraction("env.density", density)
    horizon, episodes = positive_int("env.horizon", horizon), positive_int("env.episodes", episodes)
    if size < 3:
        raise ConfigError("env.size", size, "a whole number, 3 or more")
    moves, middle = jnp.array(_MOVES), jnp.array([size // 2, size // 2])
    cells = jnp.array([(i, j) for i in range(size) for j in range(size) if (i, j) != (size // 2, size // 2)])

    def sample(key, split):
        goal_key, wall_key = jax.random.split(key)
        goal = cells[task_space.one_of(goal_key, split, len(cells))]
        rows, columns = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
        between = lambda x, a, b: (x >= jnp.minimum(a, b)) & (x <= jnp.maximum(a, b))
        along = (rows == middle[0]) & between(columns, middle[1], goal[1])
        then = (columns == goal[1]) & between(rows, middle[0], goal[0])
        walls = jax.random.bernoulli(wall_key, density, (size, size))
        return Maze(walls & ~along & ~then, goal)

    def entered(task, cell, move):
        """Where a move leads to, and whether it is another cell."""
        there = cell + move
        inside = ((there >= 0) & (there < size)).all()
        free = inside & ~task.walls[tuple(jnp.clip(there, 0, size - 1))]
        return jnp.where(free, there, cell), free

    def observe(task, cell):
        place = jax.nn.one_hot(cell[0] * size + cell[1], size * size)
        free = jax.vmap(lambda move: entered(task, cell, move)[1])(moves)
        return jnp.concatenate([place, free.astype(jnp.float32)])

    def step(task, cell, action, key):
        del key
        there, _ = entered(task, cell, moves[action])
        reached = (there == task.goal).all()
        return Step(there, jnp.where(reached, 1.0, -_COST), reached)

    def optimum(task):
        steps = distances(task)[size // 2, size // 2]
        return episodes * jnp.where(steps <= horizon, 1 - _COST * (steps - 1), -_COST * horizon)

    return Environment(
        sample=sample,
        reset=lambda task, key: middle,
        observe=observe,
        step=step,
        actions=Discrete(len(_MOVES)),
        observation_size=size * size + len(_MOVES),
        horizon=horizon,
        episodes=episodes,
        protocol={"size": size, "density": density, "step_cost": _COST},
        optimum=optimum,
        yardsticks={"random": random_agent(Discrete(len(_MOVES)))},
    )

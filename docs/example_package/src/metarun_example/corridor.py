"""A corridor with the goal at one of its ends, which the learner has to find out."""

import jax
import jax.numpy as jnp

from metarun.errors import positive_int
from metarun.rl.environment import Discrete, Environment, Step


def corridor(*, cells=5, horizon=8, episodes=3):
    """The learner begins in the middle and sees its cell. Action 1 goes right, 0 left. The goal pays 1 and ends the episode.

    A task is on which side the goal is. It says so by nothing but the reward.

    Args:
      cells: of the corridor, an odd number.
      horizon: steps of an episode, at most.
      episodes: of a trial.
    """
    cells, horizon = 2 * (positive_int("env.cells", cells) // 2) + 1, positive_int("env.horizon", horizon)
    episodes, splits = positive_int("env.episodes", episodes), ("train", "val", "test")

    def sample(key, split):
        return jax.random.bernoulli(jax.random.fold_in(key, splits.index(split)))

    def step(right, place, action, key):
        place = jnp.clip(place + 2 * action - 1, 0, cells - 1)
        reached = place == jnp.where(right, cells - 1, 0)
        return Step(place, reached.astype(jnp.float32), reached)

    return Environment(
        sample=sample,
        reset=lambda right, key: jnp.int32(cells // 2),
        observe=lambda right, place: jax.nn.one_hot(place, cells),
        step=step,
        actions=Discrete(2),
        observation_size=cells,
        horizon=horizon,
        episodes=episodes,
        protocol={"name": "corridor", "cells": cells, "horizon": horizon, "episodes": episodes},
        # One who knows the side reaches the goal in every episode, if there is time.
        optimum=lambda right: jnp.where(horizon >= cells // 2, 1.0 * episodes, 0.0),
        exchangeable=True,
    )

"""Navigation of a point in the plane."""

import jax.numpy as jnp

from metarun.errors import positive_int
from metarun.rl import task_space
from metarun.rl.environment import Continuous, Environment, Step, random_agent

_STEP = 0.1  # a coordinate's change by an action of 1
_NEAR = 0.01  # in both coordinates, where an episode ends


def point_navigation(*, horizon: int = 100, episodes: int = 1) -> Environment:
    """From the origin to a goal that is uniform in [-0.5, 0.5]^2 and not observed.

    The position is observed; an action of 1 changes a coordinate by 0.1, and none by more; the reward is minus the
    distance to the goal after it. An episode ends within 0.01 of the goal in both coordinates.

    Args:
      horizon: steps of an episode, at most.
      episodes: of a trial.

    Raises:
      ConfigError: for a value that is not allowed.

    Source: Finn et al. 2017, section 5.3.
    """
    horizon, episodes = positive_int("env.horizon", horizon), positive_int("env.episodes", episodes)

    def step(goal, position, action, key):
        del key
        position = position + _STEP * jnp.clip(action, -1, 1)
        apart = position - goal
        return Step(position, -jnp.sqrt((apart**2).sum() + 1e-12), (jnp.abs(apart) < _NEAR).all())

    actions = Continuous(2)
    return Environment(
        sample=lambda key, split: task_space.uniform(key, split, (2,)) - 0.5,
        reset=lambda goal, key: jnp.zeros(2),
        observe=lambda goal, position: position,
        step=step,
        actions=actions,
        observation_size=2,
        horizon=horizon,
        episodes=episodes,
        protocol={"goals": "uniform in [-0.5, 0.5]^2", "ends_within": _NEAR},
        yardsticks={"random": random_agent(actions)},
        goal=lambda goal: goal,
    )
